-- The columns of a `FileRecord`, of a completed export `e` of a job `j`.
e.job, e.consumer_id, e.dataset, j.format, j.compression, e.destination_id,
e.marker_seen, e.finished_at, j.traceparent,
e.output_filename as name, e.sha256, e.lane_sequence,
(select cdc_export.database_id()) as database,
j.database_id = (select cdc_export.database_id()) as is_own,
e.published_at is not null as is_published,
current_setting('synchronous_standby_names') <> '' as awaits_standby,
case when e.published_at is null then e.manifest end as manifest,
(select f.files from cdc_export.export_files f where f.job = e.job and f.dataset = e.dataset) as files
