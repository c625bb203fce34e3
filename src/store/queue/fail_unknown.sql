-- store.queue.fail_unknown
-- Fails the waiting jobs of datasets that no process has recorded for two hours, with the batches that they are members
-- of.
-- Fails none while no process records its datasets.
-- $1 text[]: the datasets in the catalog of the process
-- $2 text: the error's code
-- $3 text: the error's detail
-- $4 text: the error's code of the other members of a batch
-- $5 text: the error's detail of the other members
with unknown as materialized (
  select e.id, coalesce(e.batch_id, e.id) as whole
  from exports e
  where e.status = 'pending' and e.created_at < statement_timestamp() - interval '10 minutes' and e.dataset <> all ($1)
    and not exists (
      select from cdc_export.datasets d
      where d.name = e.dataset and d.seen_at > statement_timestamp() - interval '2 hours')
    and exists (
      select from cdc_export.datasets d where d.seen_at > statement_timestamp() - interval '65 minutes')
),
failed as materialized (
  -- In the order in which a claim locks the members of a batch.
  select id from exports
  where (id in (select whole from unknown) or batch_id in (select whole from unknown)) and status = 'pending'
  order by id
  for update
)
update exports e
set status = 'failed', finished_at = greatest(clock_timestamp(), e.created_at),
    error_code = case when e.id in (select id from unknown) then $2 else $4 end,
    error_detail = case when e.id in (select id from unknown) then $3 else $5 end
from failed
where e.id = failed.id
returning 'pending' as was,
  -- include job_columns.sql
