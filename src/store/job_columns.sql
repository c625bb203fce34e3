-- The columns of `job_row::JobRow`, of a job `e`: the job as clients see it. A completed job whose files have no final
-- names yet is still processing, at 99 percent.
e.id, e.consumer_id, e.dataset, e.lane_sequence, e.export_type, e.compression, e.selection, e.max_file_bytes,
e.skip_empty, e.heals, e.batch_id,
-- Without the prefix of a batch's member.
e.format,
e.has_after, e.after_job, e.after_sha256, e.retry_of, e.traceparent, e.output_filename,
case when e.status = 'completed' and e.published_at is null then 'processing' else e.status end as status,
case when e.status = 'completed' and e.published_at is null then 99::smallint else e.progress end as progress,
case
  when e.status = 'pending' then 'waiting'
  when e.status = 'completed' and e.published_at is null then 'publishing'
  when e.status = 'processing' and e.rows_exported = 0 then 'reading'
  when e.status = 'processing' then 'writing'
end as phase,
e.attempt, e.rows_exported, e.bytes_written,
case when e.status = 'processing' then e.rows_expected end as rows_expected,
e.error_code, e.error_detail, e.cancel_requested_at, e.report, e.watermark_from, e.watermark_to,
-- Only a published export has these.
case when e.published_at is not null then (
  select f.files from cdc_export.export_files f where f.job = e.id) end as files,
case when e.published_at is not null then e.digest end as digest,
case when e.published_at is not null then e.number end as number,
case when e.published_at is not null then (
  select e.number <= l.acknowledged from cdc_export.lanes l
  where l.consumer_id = e.consumer_id and l.dataset = e.dataset) end as acknowledged,
-- The times.
e.created_at, e.started_at,
case when e.status = 'pending' and (e.attempt > 0 or e.gave_way > 0) then e.run_at end as next_attempt_at,
case when e.status <> 'completed' or e.published_at is not null then e.finished_at end as finished_at
