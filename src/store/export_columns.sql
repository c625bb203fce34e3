-- The columns of `export_row::ExportRow`, of an export `e` of a job `j`: the export as clients see it. A completed
-- export whose files have no final names yet is still processing, at 99 percent.
e.job, j.consumer_id, e.dataset, e.lane_sequence, e.export_type, j.format, j.compression, j.selection,
j.max_file_bytes, j.skip_empty, j.heals, j.datasets is not null as is_of_datasets,
e.has_after, e.after_job, e.after_sha256, j.retry_of, j.traceparent, e.output_filename,
case
  when e.status = 'open' then j.status
  when e.status = 'completed' and e.published_at is null then 'processing'
  else e.status end as status,
case when e.status = 'completed' and e.published_at is null then 99::smallint else e.progress end as progress,
case
  when e.status = 'completed' and e.published_at is null then 'publishing'
  when e.status <> 'open' then null
  when j.status = 'pending' then 'waiting'
  when e.rows_exported = 0 then 'reading'
  else 'writing'
end as phase,
j.attempt, e.rows_exported, e.bytes_written,
case when e.status = 'open' and j.status = 'processing' then e.rows_expected end as rows_expected,
case
  when e.status in ('open', 'failed') then j.error_code
  when e.status = 'completed' and e.published_at is null
    and e.finished_at < clock_timestamp() - interval '1 minute' then 'not_published'
end as error_code,
case when e.status in ('open', 'failed') then j.error_detail end as error_detail,
case when e.status in ('open', 'failed') then j.error_dataset end as error_dataset,
j.cancel_requested_at, e.report, e.watermark_from, e.watermark_to,
-- Only a published export has these.
case when e.published_at is not null then (
  select f.files from cdc_export.export_files f where f.job = e.job and f.dataset = e.dataset) end as files,
case when e.published_at is not null then e.digest end as digest,
case when e.published_at is not null then e.number end as number,
case when e.published_at is not null then (
  select e.number <= l.acknowledged from cdc_export.lanes l
  where l.consumer_id = e.consumer_id and l.dataset = e.dataset) end as acknowledged,
-- The times.
j.created_at, j.started_at,
case when j.status = 'pending' and (j.attempt > 0 or j.gave_way > 0) then j.run_at end as next_attempt_at,
case when e.status <> 'completed' or e.published_at is not null then e.finished_at end as finished_at
