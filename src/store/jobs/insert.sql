-- store.jobs.insert
-- Creates a job, or the jobs of a batch, and notifies the workers. Creates none whose file's name is taken, with any
-- extension: the name of a manifest is that of the file without its extension, so two formats would share it.
-- $1 uuid[]: the jobs
-- $2 text: the consumer; null for an ad-hoc export
-- $3 text[]: their datasets
-- $4 bigint[]: their numbers in their lanes
-- $5 text[]: their export types
-- $6 text: the format
-- $7 integer: the limit on attempts
-- $8 text[]: the files' final names
-- $9 uuid: the destination
-- $10 timestamptz: the time of their creation
-- $11 uuid[]: the jobs that they retry
-- $12 text: the idempotency key, which the first job has
-- $13 text: the compression
-- $14 jsonb: the selection
-- $15 boolean[]: true if the request said which export was loaded last
-- $16 uuid[]: that export
-- $17 text[]: its SHA-256
-- $18 text: the channel of notifications
-- $19 bigint: the size at which the next file begins
-- $20 text: their trace context
-- $21 timestamptz: the turn of the job, or of the batch
-- $22 text: the public part of the caller's key
-- $23 boolean: true to make no file if there is nothing to export; null: as the dataset has it
-- $24 uuid: the batch, which is its first job; null: none
-- $25 jsonb: the request for the batch, of its first job
-- $26 text: the extension of the files
-- $27 boolean: true to make full exports where only these go on
insert into exports as e (
  id, consumer_id, dataset, lane_sequence, export_type, format, max_attempts, output_filename, destination_id,
  created_at, retry_of, idempotency_key, compression, selection, has_after, after_job, after_sha256,
  max_file_bytes, traceparent, turn, key_prefix, skip_empty, batch_id, batch, heals)
select its.id, $2, its.dataset, its.lane_sequence, its.export_type, $6, $7, its.name, $9, $10, its.retry_of,
  case when its.id = coalesce($24, its.id) then $12 end, $13, $14, its.has_after, its.after_job, its.after_sha256,
  $19, $20, case when its.id = coalesce($24, its.id) then $21 else 'infinity' end, $22, $23, $24,
  case its.id when $24 then $25 end, $27
from unnest($1, $3, $4, $5, $8, $11, $15, $16, $17)
  as its (id, dataset, lane_sequence, export_type, name, retry_of, has_after, after_job, after_sha256)
cross join lateral (select lower(left(its.name, -length($26)) collate "C") as bare) own
where not exists (
  select from exports taken
  where lower(taken.output_filename) >= own.bare || '.' and lower(taken.output_filename) < own.bare || '/')
on conflict (lower(output_filename)) do nothing
returning pg_notify($18, ''),
  -- include job_columns.sql
