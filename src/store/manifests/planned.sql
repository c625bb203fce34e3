-- store.manifests.planned
-- Returns the content of the manifest of a committed export, and its text if that is saved. The lane waits for this
-- export, so all callers get the same result.
-- $1 uuid: the job
-- $2 text: its final name
select e.manifest, e.file_columns, coalesce(l.last_number, 0) + 1 as next_number,
  (select before.digest from exports before
   where before.consumer_id = e.consumer_id and before.dataset = e.dataset and before.number is not null
   order by before.number desc limit 1) as previous,
  case when e.batch_id is not null then (
    select count(*) from exports m where m.batch_id = e.batch_id and m.status <> 'skipped') end as batched,
  -- include job_columns.sql
from exports e
left join cdc_export.lanes l on l.consumer_id = e.consumer_id and l.dataset = e.dataset
where e.id = $1 and e.status = 'completed' and e.published_at is null and e.output_filename = $2
  and e.consumer_id is not null
