-- store.queue.reap
-- Takes the jobs of vanished workers back: they become pending, failed or cancelled. A batch is taken back as a whole.
-- $1 text: the error code of a job without attempts left
with lapsed as (
  -- A locked row belongs to a worker that may be committing its job.
  select id
  from exports
  where status = 'processing' and lease_expires_at < clock_timestamp()
  for update skip locked
),
lost as (
  select e.id, e.lease_token, e.session,
    case
      when e.cancel_requested_at is not null then 'cancelled'
      when e.attempt >= e.max_attempts then 'failed'
      else 'pending' end as next
  from exports e
  where e.status = 'processing'
    and (e.id in (select lapsed.id from lapsed) or e.batch_id in (select lapsed.id from lapsed))
)
update exports e
set status = lost.next, progress = 0, lease_token = null, lease_owner = null, lease_expires_at = null,
    run_at = clock_timestamp(), purge_hold = null,
    finished_at = case when lost.next <> 'pending' then greatest(clock_timestamp(), e.started_at) end,
    error_code = case lost.next when 'failed' then $1 end,
    error_detail = case lost.next when 'failed' then
      'its workers vanished, each of ' || e.attempt || ' attempts' end
from lost
-- A worker may have committed it since it was looked for.
where e.id = lost.id and e.lease_token = lost.lease_token and e.status = 'processing'
returning 'processing' as was, lost.session,
  -- include job_columns.sql
