-- store.jobs.insert
-- Creates a job with its exports, or adds exports to it, and notifies the workers. Returns the exports that it created.
-- Creates none whose file's name is taken, with any extension: the name of a manifest is that of the file without its
-- extension, so two formats would share it.
-- $1 uuid: the job
-- $2 text: the consumer; null for an ad-hoc export
-- $3 text: the type of export that was asked for
-- $4 jsonb: the request with `datasets`; null: it was for one dataset
-- $5 integer: the number of exports of the job; null: the job is there
-- $6 text: the format
-- $7 text: the compression
-- $8 bigint: the size at which the next file begins
-- $9 jsonb: the selection
-- $10 boolean: true to make no file if there is nothing to export; null: as the dataset has it
-- $11 boolean: true to make full exports where only these go on
-- $12 uuid: the job that it retries
-- $13 text: the idempotency key
-- $14 text: the public part of the caller's key
-- $15 text: the trace context
-- $16 integer: the limit on attempts
-- $17 timestamptz: the turn
-- $18 uuid: the destination
-- $19 timestamptz: the time of its creation
-- $20 text: the channel of notifications
-- $21 text[]: the datasets of the exports
-- $22 bigint[]: the places in their lanes
-- $23 text[]: the export types
-- $24 text[]: the files' final names
-- $25 text: the extension of the files
-- $26 boolean[]: true if the request said which export was loaded last
-- $27 uuid[]: the job of that export
-- $28 text[]: its SHA-256
with made as (
  insert into cdc_export.jobs (
    id, consumer_id, export_type, datasets, open_exports, format, compression, max_file_bytes, selection, skip_empty,
    heals, retry_of, idempotency_key, key_prefix, traceparent, max_attempts, turn, destination_id, created_at)
  select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19
  where $5 is not null
  returning *
),
j as (
  select * from made
  union all
  select * from cdc_export.jobs where id = $1 and $5 is null
),
e as (
  insert into cdc_export.exports (
    job, consumer_id, dataset, lane_sequence, export_type, output_filename, has_after, after_job, after_sha256)
  select j.id, j.consumer_id, input.dataset, input.lane_sequence, input.export_type, input.name, input.has_after,
    input.after_job, input.after_sha256
  from j
  cross join unnest($21, $22, $23, $24, $26, $27, $28)
    as input (dataset, lane_sequence, export_type, name, has_after, after_job, after_sha256)
  cross join lateral (select lower(left(input.name, -length($25)) collate "C") as bare) own
  where not exists (
    select from cdc_export.exports taken
    where lower(taken.output_filename) >= own.bare || '.' and lower(taken.output_filename) < own.bare || '/')
  on conflict (lower(output_filename)) do nothing
  returning *
)
select pg_notify($20, ''),
  -- include export_columns.sql
from j
join e on e.job = j.id
