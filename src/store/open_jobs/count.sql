-- store.open_jobs.count
-- Counts the open jobs, and returns the turn of the jobs that were claimed last.
-- $1 bigint: the limit of the count
select
  (select count(*) from (
    select from cdc_export.jobs where status in ('pending', 'processing') limit $1) open),
  -- Between two claims no job runs: then the turn of the next one. With an empty queue, the time.
  greatest(
    case when waiting.turn is null then clock_timestamp()
      else coalesce((select max(turn) from cdc_export.jobs where status = 'processing'), waiting.turn) end,
    -- A job that was never claimed, of a dataset that is gone, doesn't keep the turns back for ever.
    clock_timestamp() - interval '1 day')
from (
  select min(turn) as turn from cdc_export.jobs
  where status = 'pending' and run_at <= clock_timestamp()) waiting
