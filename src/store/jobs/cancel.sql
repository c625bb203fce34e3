-- store.jobs.cancel
-- $1 uuid: the job
with asked as materialized (
  select id, status from cdc_export.jobs where id = $1 and status in ('pending', 'processing') for update
),
j as (
  update cdc_export.jobs job
  set status = case asked.status when 'pending' then 'cancelled' else job.status end,
      open_exports = case asked.status when 'pending' then 0 else job.open_exports end,
      cancel_requested_at = coalesce(job.cancel_requested_at, clock_timestamp()),
      -- A cancelled job has not failed, so this removes the error of an earlier attempt.
      error_code = case asked.status when 'processing' then job.error_code end,
      error_detail = case asked.status when 'processing' then job.error_detail end,
      error_dataset = case asked.status when 'processing' then job.error_dataset end
  from asked
  where job.id = asked.id
  returning job.*, asked.status as was
),
cancelled as (
  update cdc_export.exports export
  set status = 'cancelled', finished_at = greatest(clock_timestamp(), j.created_at)
  from j
  where export.job = j.id and j.was = 'pending'
  returning export.*
)
select j.was, j.status as job_status,
  -- include export_columns.sql
from j
join (
  select cancelled.* from cancelled
  union all
  select export.* from cdc_export.exports export join j on j.id = export.job where j.was = 'processing') e
  on e.job = j.id
