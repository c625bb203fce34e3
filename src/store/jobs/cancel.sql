-- store.jobs.cancel
-- Cancels a pending job, or asks the worker of a processing one to stop.
-- $1 uuid: the job
-- $2 jsonb: the sender of the request
update exports e
set status = case e.status when 'pending' then 'cancelled' else e.status end,
    cancel_requested_at = coalesce(e.cancel_requested_at, clock_timestamp()),
    finished_at = case e.status when 'pending' then greatest(clock_timestamp(), e.created_at) end,
    -- A cancelled job has not failed, so this removes the error of an earlier attempt.
    error_code = case e.status when 'processing' then e.error_code end,
    error_detail = case e.status when 'processing' then e.error_detail end
where e.id = $1 and e.status in ('pending', 'processing')
returning cdc_export.audit($2, 'cancel', e.consumer_id, e.dataset, e.id),
  case e.status when 'cancelled' then 'pending' else e.status end as was,
  -- include job_columns.sql
