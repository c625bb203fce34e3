-- store.open_jobs.count
-- Counts the open jobs, a batch as one, and returns the turn of the jobs that were claimed last.
-- $1 bigint: the limit of the count
select
  (select count(*) from (
    select from exports where status in ('pending', 'processing') and turn < 'infinity' limit $1) open),
  -- Between two claims no job runs: then the turn of the next one. With an empty queue, the time.
  greatest(
    case when waiting.turn is null then clock_timestamp()
      else coalesce((
        select max(turn) from exports where status = 'processing' and turn < 'infinity'), waiting.turn) end,
    -- A job that was never claimed, of a dataset that is gone, doesn't keep the turns back for ever.
    clock_timestamp() - interval '1 day')
from (
  select min(turn) as turn from exports
  where status = 'pending' and run_at <= clock_timestamp() and turn < 'infinity') waiting
