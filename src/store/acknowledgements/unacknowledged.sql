-- store.acknowledgements.unacknowledged
-- $1 text[]: the consumer of each lane
-- $2 text[]: the dataset of each lane
-- $3 bigint: the limit on counted exports of a lane
select l.consumer_id, l.dataset, after.exports, after.since
from unnest($1, $2) as k (consumer_id, dataset)
join cdc_export.lanes l on l.consumer_id = k.consumer_id and l.dataset = k.dataset and l.acknowledged is not null
cross join lateral (
  select count(*) as exports, min(published_at) as since
  from (
    -- After a restore the numbers may have gaps, so this counts exports.
    select e.published_at from cdc_export.exports e
    where e.consumer_id = l.consumer_id and e.dataset = l.dataset and e.number > l.acknowledged
      and e.published_at is not null
    order by e.number
    limit $3) counted) after
