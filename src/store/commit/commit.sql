-- store.commit
-- Completes a job: its exports with their files, and those that found nothing without. Removes earlier exports of this
-- kind from the lanes of the latter. Returns no row if another worker has the lease or a client cancelled the job.
-- $1 uuid: the job
-- $2 uuid: the lease token
-- $3 text[]: the datasets of all exports
-- $4 bigint[]: the rows of all files of each
-- $5 bigint[]: the bytes of all files of each
-- $6 text[]: the SHA-256 of the files of each; null: it found nothing, and the members of the files are null
-- $7 text[]: the hidden name of the first file of each
-- $8 timestamptz[]: the watermark of each when the attempt began
-- $9 timestamptz[]: the watermark that each saves
-- $10 jsonb[]: the reports, to which the statement adds a change of the columns
-- $11 text[]: the names and types of the files' columns
-- $12 uuid[]: the job of the export in the marker of each lane
-- $13 jsonb[]: the files' columns, for the manifests
-- $14 text[]: the manifests
-- $15 text[]: their digests
-- $16 bigint[]: their numbers; if a lane's next number is another one, the publisher makes a new manifest
-- $17 uuid: the destination
-- $18 text[]: the dataset of each file
-- $19 integer[]: the number of each file among those of its export
-- $20 text[]: the hidden name of each file
-- $21 jsonb[]: the place of each file
-- $22 bigint[]: the bytes of each file
-- $23 bigint[]: the rows of each file
-- $24 text[]: the SHA-256 of each file
with input as materialized (
  select input.*
  from unnest($3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) as input (
    dataset, rows, bytes, sha256, staged_name, watermark_from, watermark_to, report, signature, marker, columns,
    manifest, digest, number)
),
j as (
  update cdc_export.jobs job
  set status = case when files.exports = 0 then 'skipped' else 'committed' end, open_exports = files.exports,
      lease_token = null, lease_owner = null, lease_expires_at = null, purge_hold = null,
      error_code = null, error_detail = null, error_dataset = null
  from (select count(input.sha256) as exports from input) files
  where job.id = $1 and job.lease_token = $2 and job.status = 'processing' and job.cancel_requested_at is null
  returning job.*, greatest(clock_timestamp(), job.started_at) as committed_at
),
e as (
  update cdc_export.exports export
  set status = case when input.sha256 is null then 'skipped' else 'completed' end, progress = 100,
      finished_at = j.committed_at, rows_exported = input.rows, bytes_written = input.bytes, sha256 = input.sha256,
      staged_name = input.staged_name, destination_id = case when input.sha256 is not null then $17 end,
      watermark_from = input.watermark_from, watermark_to = input.watermark_to,
      marker_seen = input.marker, file_columns = input.columns,
      columns_hash = case when input.sha256 is not null then md5(input.signature) end,
      manifest = case when lane.next_number = input.number then input.manifest end,
      digest = case when lane.next_number = input.number then input.digest end,
      report = input.report || case
        when input.sha256 is not null and last.columns_hash <> md5(input.signature)
          then '{"schemaChanged": true}'::jsonb
        else '{}' end
  from j
  cross join input
  left join lateral (
    select l.last_number + 1 as next_number from cdc_export.lanes l
    where l.consumer_id = j.consumer_id and l.dataset = input.dataset) lane on true
  left join lateral (
    select l.columns_hash from cdc_export.exports l
    where l.consumer_id = j.consumer_id and l.dataset = input.dataset and l.number is not null
    order by l.number desc limit 1) last on true
  where export.job = j.id and export.dataset = input.dataset
  returning export.*
),
recorded as (
  insert into cdc_export.files (job, dataset, part, staged_name, place, bytes, rows, sha256)
  select j.id, p.*
  from j
  cross join unnest($18, $19, $20, $21, $22, $23, $24)
    as p (dataset, part, staged_name, place, bytes, rows, sha256)
),
removed as (
  delete from cdc_export.exports earlier
  using e
  cross join lateral (
    -- Whoever waits for one that has just ended may still look. The limit is for a lane of which many failed.
    select old.job
    from cdc_export.exports old
    where coalesce(old.consumer_id, '') = e.consumer_id and old.dataset = e.dataset
      and old.finished_at < statement_timestamp() - interval '1 minute'
      and (old.status <> 'completed' or old.file_removed_at is not null)
    order by old.finished_at desc, old.job desc
    limit 10) last
  where e.status = 'skipped' and earlier.job = last.job and earlier.dataset = e.dataset and earlier.status = 'skipped'
    -- The event of its job is still to be told.
    and not exists (
      select from cdc_export.deliveries d
      where d.job = earlier.job and d.delivered_at is null and d.dead_at is null)
)
select 'processing' as was, j.status as job_status, e.manifest is not null as is_planned,
  -- include export_columns.sql
from j
join e on e.job = j.id
