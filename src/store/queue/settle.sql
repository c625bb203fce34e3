-- store.queue.settle
-- Ends an attempt without completing its job: the job becomes pending, failed or cancelled.
-- $1 uuid: the job
-- $2 uuid: the lease token
-- $3 boolean: true if the job fails even with attempts left
-- $4 integer: the number of attempts that don't count, 0 or 1
-- $5 text: the error's code; null keeps the code of an earlier attempt
-- $6 text: the error's detail
-- $7 text: the result of the guard
-- $8 float8: the seconds until the next attempt
-- $9 float8: the seconds for which no job of the dataset is claimed; null: the table was not locked
with held as (
  -- The row lock waits for a commit of this attempt that is under way.
  select id,
    case
      when cancel_requested_at is not null then 'cancelled'
      when $3 or attempt - $4 >= max_attempts then 'failed'
      else 'pending' end as next
  from exports
  where id = $1 and lease_token = $2 and status = 'processing'
  for update
)
update exports e
set status = held.next, progress = 0,
    attempt = e.attempt - case held.next when 'pending' then $4 else 0 end,
    lease_token = null, lease_owner = null, lease_expires_at = null,
    finished_at = case when held.next <> 'pending' then greatest(clock_timestamp(), e.started_at) end,
    run_at = clock_timestamp() + make_interval(secs => $8), purge_hold = null, continuity = $7,
    locked_until = coalesce(clock_timestamp() + make_interval(secs => $9), e.locked_until),
    error_code = case when held.next = 'cancelled' then null else coalesce($5, e.error_code) end,
    error_detail = case when held.next = 'cancelled' then null else coalesce($6, e.error_detail) end
from held
where e.id = held.id
returning 'processing' as was,
  -- include job_columns.sql
