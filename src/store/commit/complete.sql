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
-- $10 text: the result of the guard
-- $11 bigint: the number of rows that only the change log found
-- $12 integer: the number of open transactions with changes
-- $13 float8: the age of the oldest of them in seconds
-- $14 boolean: true if the table was rewritten
-- $15 text: the names and types of the files' columns
-- $16 uuid: the export in the marker of the lane
-- $17 jsonb: the files' columns, for the manifest
-- $18 bigint: the number of deletions that were not captured
-- $19 jsonb[]: the place of each file
-- $20 text[]: the hidden name of each file
-- $21 bigint[]: the bytes of each file
-- $22 bigint[]: the rows of each file
-- $23 text[]: the SHA-256 of each file
-- $24 text: the manifest
-- $25 text: its digest
-- $26 bigint: its number; if the lane's next number is another one, the publisher makes a new manifest
with completed as (
  update exports e
  set status = 'completed', progress = 100, finished_at = greatest(clock_timestamp(), e.started_at),
      lease_token = null, lease_owner = null, lease_expires_at = null, purge_hold = null,
      error_code = null, error_detail = null,
      rows_exported = $3, bytes_written = $4, sha256 = $5, staged_name = $6, destination_id = $9,
      watermark_from = $7, watermark_to = $8,
      continuity = $10, late_rows = $11, open_transactions = $12, oldest_transaction_seconds = $13,
      table_rewritten = $14, quiet_deletes = $18, marker_seen = $16,
      file_columns = $17, columns_hash = md5($15),
      manifest = case when link.is_next then $24 end, digest = case when link.is_next then $25 end,
      schema_changed = (
        select l.columns_hash <> md5($15) from exports l
        where l.consumer_id = e.consumer_id and l.dataset = e.dataset and l.lane_sequence < e.lane_sequence
          and l.status = 'completed'
        order by l.lane_sequence desc limit 1)
  from (
    select coalesce((
      select l.last_number from cdc_export.lanes l
      where (l.consumer_id, l.dataset) = (select j.consumer_id, j.dataset from exports j where j.id = $1)), 0) + 1 = $26
      as is_next) link
  where e.id = $1 and e.lease_token = $2 and e.status = 'processing' and e.cancel_requested_at is null
  returning e.id, e.manifest is not null as is_planned
),
recorded as (
  insert into cdc_export.files (job, part, staged_name, place, bytes, rows, sha256)
  select completed.id, p.part, p.staged_name, p.place, p.bytes, p.rows, p.sha256
  from completed
  cross join unnest($19, $20, $21, $22, $23) with ordinality as p (place, staged_name, bytes, rows, sha256, part)
)
select is_planned from completed
