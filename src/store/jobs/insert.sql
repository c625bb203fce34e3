-- store.jobs.insert
-- Creates a job and notifies the workers. Creates none if the file's name is taken.
-- $1 uuid: the job
-- $2 text: the consumer; null for an ad-hoc export
-- $3 text: the dataset
-- $4 bigint: the number in the lane
-- $5 text: the export type
-- $6 text: the format
-- $7 integer: the limit on attempts
-- $8 text: the file's final name
-- $9 uuid: the destination
-- $10 timestamptz: the time of its creation
-- $11 uuid: the job that it retries
-- $12 text: the idempotency key
-- $13 text: the compression
-- $14 jsonb: the selection
-- $15 boolean: true if the request said which export was loaded last
-- $16 uuid: that export
-- $17 text: its SHA-256
-- $18 text: the channel of notifications
-- $19 bigint: the size at which the next file begins
-- $20 text: its trace context
-- $21 timestamptz: its turn
-- $22 text: the public part of the caller's key
-- $23 jsonb: the sender of the request
-- $24 boolean: true to make no file if there is nothing to export; null: as the dataset has it
insert into exports as e (
  id, consumer_id, dataset, lane_sequence, export_type, format, max_attempts, output_filename, destination_id,
  created_at, retry_of, idempotency_key, compression, selection, has_after, after_job, after_sha256,
  max_file_bytes, traceparent, turn, key_prefix, skip_empty)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $19, $20, $21, $22, $24)
on conflict (lower(output_filename)) do nothing
returning pg_notify($18, ''),
  cdc_export.audit($23, case when e.retry_of is null then 'export' else 'retry' end, e.consumer_id, e.dataset, e.id),
  -- include job_columns.sql
