-- store.queue.reap
-- $1 text: the error code of a job without attempts left
with lapsed as materialized (
  -- A locked row belongs to a worker that may be committing its job.
  select job.id, job.session,
    case
      when job.cancel_requested_at is not null then 'cancelled'
      when job.attempt >= job.max_attempts then 'failed'
      else 'pending' end as next
  from cdc_export.jobs job
  where job.status = 'processing' and job.lease_expires_at < clock_timestamp()
  for update skip locked
),
j as (
  update cdc_export.jobs job
  set status = lapsed.next, open_exports = case lapsed.next when 'pending' then job.open_exports else 0 end,
      lease_token = null, lease_owner = null, lease_expires_at = null, run_at = clock_timestamp(), purge_hold = null,
      error_code = case lapsed.next when 'failed' then $1 end,
      error_detail = case lapsed.next when 'failed' then
        'its workers vanished, each of ' || job.attempt || ' attempts' end,
      error_dataset = null
  from lapsed
  where job.id = lapsed.id
  returning job.*, lapsed.next, lapsed.session as lapsed_session
),
e as (
  update cdc_export.exports export
  set status = case j.next when 'pending' then 'open' else j.next end, progress = 0,
      rows_exported = case j.next when 'pending' then 0 else export.rows_exported end,
      bytes_written = case j.next when 'pending' then 0 else export.bytes_written end,
      rows_expected = null,
      finished_at = case when j.next <> 'pending' then greatest(clock_timestamp(), j.started_at) end
  from j
  where export.job = j.id
  returning export.*
)
select 'processing' as was, j.status as job_status, j.lapsed_session as session,
  -- include export_columns.sql
from j
join e on e.job = j.id
