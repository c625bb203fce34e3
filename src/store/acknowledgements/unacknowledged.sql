-- store.acknowledgements.unacknowledged
-- Returns what there is to acknowledge in each of these lanes that has ever acknowledged an export.
-- $1 text[]: the consumer of each lane
-- $2 text[]: the dataset of each lane
-- $3 bigint: how many exports of a lane are counted at most
select l.consumer_id, l.dataset, after.exports, after.since
from unnest($1, $2) as k (consumer_id, dataset)
join cdc_export.lanes l on l.consumer_id = k.consumer_id and l.dataset = k.dataset and l.acknowledged is not null
cross join lateral (
  select count(*) as exports, min(published_at) as since
  from (
    -- Numbers may skip some after a restore, so exports are counted.
    select e.published_at from exports e
    where e.consumer_id = l.consumer_id and e.dataset = l.dataset and e.number > l.acknowledged
      and e.published_at is not null
    order by e.number
    limit $3) counted) after
