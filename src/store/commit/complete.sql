-- store.commit.complete
-- Completes a job and records its files. Returns no row if another worker has the lease or a client cancelled the job.
-- $1 uuid: the job
-- $2 uuid: the lease token
-- $3 bigint: the rows of all files
-- $4 bigint: the bytes of all files
-- $5 text: the SHA-256 of the files
-- $6 text: the hidden name of the first file
-- $7 timestamptz: the watermark when the export began
-- $8 timestamptz: the watermark that it saves
-- $9 uuid: the destination
-- $10 jsonb: the report, to which the statement adds a change of the columns
-- $11 text: the names and types of the files' columns
-- $12 uuid: the export in the marker of the lane
-- $13 jsonb: the files' columns, for the manifest
-- $14 jsonb[]: the place of each file
-- $15 text[]: the hidden name of each file
-- $16 bigint[]: the bytes of each file
-- $17 bigint[]: the rows of each file
-- $18 text[]: the SHA-256 of each file
-- $19 text: the manifest
-- $20 text: its digest
-- $21 bigint: its number; if the lane's next number is another one, the publisher makes a new manifest
with completed as (
  update exports e
  set status = 'completed', progress = 100, finished_at = greatest(clock_timestamp(), e.started_at),
      lease_token = null, lease_owner = null, lease_expires_at = null, purge_hold = null,
      error_code = null, error_detail = null,
      rows_exported = $3, bytes_written = $4, sha256 = $5, staged_name = $6, destination_id = $9,
      watermark_from = $7, watermark_to = $8,
      marker_seen = $12, file_columns = $13, columns_hash = md5($11),
      manifest = case when link.is_next then $19 end, digest = case when link.is_next then $20 end,
      report = $10 || case when (
        select l.columns_hash <> md5($11) from exports l
        where l.consumer_id = e.consumer_id and l.dataset = e.dataset and l.lane_sequence < e.lane_sequence
          and l.status = 'completed'
        order by l.lane_sequence desc limit 1) then '{"schemaChanged": true}'::jsonb else '{}' end
  from (
    select coalesce((
      select l.last_number from cdc_export.lanes l
      where (l.consumer_id, l.dataset) = (select j.consumer_id, j.dataset from exports j where j.id = $1)), 0) + 1 = $21
      as is_next) link
  where e.id = $1 and e.lease_token = $2 and e.status = 'processing' and e.cancel_requested_at is null
  returning e.id, e.manifest is not null as is_planned
),
recorded as (
  insert into cdc_export.files (job, part, staged_name, place, bytes, rows, sha256)
  select completed.id, p.part, p.staged_name, p.place, p.bytes, p.rows, p.sha256
  from completed
  cross join unnest($14, $15, $16, $17, $18) with ordinality as p (place, staged_name, bytes, rows, sha256, part)
)
select is_planned from completed
