-- store.jobs.last
-- Returns the last job of each of these lanes that has one.
-- $1 text[]: the consumer of each lane
-- $2 text[]: the dataset of each lane
select last.*
from unnest($1, $2) as l (consumer_id, dataset)
cross join lateral (
  select
    -- include job_columns.sql
  from exports e
  where e.consumer_id = l.consumer_id and e.dataset = l.dataset
  order by e.lane_sequence desc
  limit 1) last
