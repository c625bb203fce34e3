-- store.jobs.of_batch
-- Returns the members of a batch, in the order of their datasets' names.
-- $1 uuid: the batch
select
  -- include job_columns.sql
from exports e
where e.batch_id = $1
order by e.dataset
