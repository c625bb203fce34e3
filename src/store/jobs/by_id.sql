-- store.jobs.by_id
-- Returns jobs by their ids, in no order.
-- $1 uuid[]: the jobs
select
  -- include job_columns.sql
from exports e
where e.id = any ($1)
