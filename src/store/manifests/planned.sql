-- store.manifests.planned
-- Returns the content of the manifest of a committed export, and its text if that is saved. The lane waits for this
-- export, so all callers get the same result.
-- $1 uuid: the job
-- $2 text: the dataset
-- $3 text: its final name
select e.manifest, e.file_columns, coalesce(l.last_number, 0) + 1 as next_number,
  (select before.digest from cdc_export.exports before
   where before.consumer_id = e.consumer_id and before.dataset = e.dataset and before.number is not null
   order by before.number desc limit 1) as previous,
  -- No export of the job that has a file, or had one, is removed before all are published or given up.
  (select count(*) from cdc_export.exports own where own.job = e.job and own.status <> 'skipped') as with_files,
  -- include export_columns.sql
from cdc_export.exports e
join cdc_export.jobs j on j.id = e.job
left join cdc_export.lanes l on l.consumer_id = e.consumer_id and l.dataset = e.dataset
where e.job = $1 and e.dataset = $2 and e.status = 'completed' and e.published_at is null and e.output_filename = $3
  and e.consumer_id is not null
