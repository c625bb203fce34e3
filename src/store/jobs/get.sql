-- store.jobs.get
-- $1 uuid: the job
select
  -- include job_columns.sql
from exports e
where e.id = $1
