-- store.queue.fail_unknown
-- Fails the waiting jobs of datasets that no process has recorded for two hours.
-- Fails none while no process records its datasets.
-- $1 text[]: the datasets in the catalog of the process
-- $2 text: the error's code
-- $3 text: the error's detail
with unknown as materialized (
  select j.id, missing.dataset
  from cdc_export.jobs j
  cross join lateral (
    select min(e.dataset) as dataset from cdc_export.exports e
    where e.job = j.id and e.dataset <> all ($1) and not exists (
      select from cdc_export.datasets d
      where d.name = e.dataset and d.seen_at > statement_timestamp() - interval '2 hours')) missing
  where j.status = 'pending' and j.created_at < statement_timestamp() - interval '10 minutes'
    and missing.dataset is not null
    and exists (
      select from cdc_export.datasets d where d.seen_at > statement_timestamp() - interval '65 minutes')
),
j as (
  update cdc_export.jobs job
  set status = 'failed', open_exports = 0, error_code = $2, error_detail = $3, error_dataset = unknown.dataset
  from unknown
  where job.id = unknown.id and job.status = 'pending'
  returning job.*
),
e as (
  update cdc_export.exports export
  set status = 'failed', finished_at = greatest(clock_timestamp(), j.created_at)
  from j
  where export.job = j.id
  returning export.*
)
select 'pending' as was, j.status as job_status,
  -- include export_columns.sql
from j
join e on e.job = j.id
