-- store.jobs.get
-- Returns a job.
-- $1 uuid: the job
select
  -- include job_columns.sql
from exports e
where e.id = $1
