-- store.jobs.get
-- $1 uuid[]: the jobs
select
  -- include job_columns.sql
from cdc_export.jobs j
join cdc_export.exports e on e.job = j.id
where j.id = any ($1)
order by e.job, e.dataset
