-- store.jobs.cancel
-- Cancels a pending job or batch, or asks the worker of a processing one to stop. A member of a batch is not cancelled
-- alone.
-- $1 uuid: the job, or the batch
-- $2 boolean: true for a batch
with asked as materialized (
  -- In the order in which a claim locks the members of a batch.
  select id from exports
  where (id = $1 and batch_id is null and not $2 or batch_id = $1 and $2) and status in ('pending', 'processing')
  order by id
  for update
)
update exports e
set status = case e.status when 'pending' then 'cancelled' else e.status end,
    cancel_requested_at = coalesce(e.cancel_requested_at, clock_timestamp()),
    finished_at = case e.status when 'pending' then greatest(clock_timestamp(), e.created_at) end,
    -- A cancelled job has not failed, so this removes the error of an earlier attempt.
    error_code = case e.status when 'processing' then e.error_code end,
    error_detail = case e.status when 'processing' then e.error_detail end
from asked
where e.id = asked.id
returning case e.status when 'cancelled' then 'pending' else e.status end as was,
  -- include job_columns.sql
