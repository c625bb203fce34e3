-- store.lanes.under_way
-- Returns a lane's jobs that have not ended, or whose files are not published yet.
-- $1 text: the consumer
-- $2 text: the dataset
-- $3 bigint: the limit on jobs
select
  -- include job_columns.sql
from (
  select id from exports where consumer_id = $1 and dataset = $2 and status in ('pending', 'processing')
  union all
  select id from exports
  where consumer_id = $1 and dataset = $2 and status = 'completed' and published_at is null) open
join exports e on e.id = open.id
order by e.lane_sequence
limit $3
