-- store.gauges.unacknowledged_ages
-- $1 text[]: the datasets
-- $2 bigint: the limit on lanes
-- $3 bigint: the limit on counted exports of a lane
with oldest as (
  select l.consumer_id, l.dataset, l.acknowledged, first.published_at as since
  from cdc_export.lanes l
  left join lateral (
    select e.published_at from cdc_export.exports e
    where e.consumer_id = l.consumer_id and e.dataset = l.dataset and e.number > l.acknowledged
      and e.published_at is not null
    order by e.number
    limit 1) first on true
  where l.acknowledged is not null and l.dataset = any ($1)
  order by first.published_at nulls last
  limit $2
)
select oldest.consumer_id, oldest.dataset, counted.exports,
  greatest(extract(epoch from clock_timestamp() - oldest.since), 0)::float8
from oldest
cross join lateral (
  select count(*) as exports
  from (
    -- After a restore the numbers may have gaps, so this counts exports.
    select from cdc_export.exports e
    where e.consumer_id = oldest.consumer_id and e.dataset = oldest.dataset and e.number > oldest.acknowledged
      and e.published_at is not null
    order by e.number
    limit $3) after) counted
