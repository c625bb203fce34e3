-- store.queue.reap
-- Takes the jobs of vanished workers back: they become pending, failed or cancelled.
-- $1 text: the error code of a job without attempts left
with lost as (
  -- A locked row belongs to a worker that may be committing its job.
  select id,
    case
      when cancel_requested_at is not null then 'cancelled'
      when attempt >= max_attempts then 'failed'
      else 'pending' end as next
  from exports
  where status = 'processing' and lease_expires_at < clock_timestamp()
  for update skip locked
)
update exports e
set status = lost.next, progress = 0, lease_token = null, lease_owner = null, lease_expires_at = null,
    run_at = clock_timestamp(), purge_hold = null,
    finished_at = case when lost.next <> 'pending' then greatest(clock_timestamp(), e.started_at) end,
    error_code = case lost.next when 'failed' then $1 end,
    error_detail = case lost.next when 'failed' then
      'its workers vanished, each of ' || e.attempt || ' attempts' end
from lost
where e.id = lost.id
returning 'processing' as was,
  -- include job_columns.sql
