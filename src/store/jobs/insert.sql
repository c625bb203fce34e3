-- store.jobs.insert
-- Makes a job and notifies the workers. Makes none if a file's name is taken.
-- $1 uuid: the job
-- $2 text: the consumer; null: an ad-hoc export
-- $3 text: the dataset
-- $4 bigint: the place in the lane
-- $5 text: the export type
-- $6 text: the format
-- $7 integer: how many attempts it has
-- $8 text: the file's final name
-- $9 uuid: the destination
-- $10 timestamptz: when it is made
-- $11 uuid: the job that it repeats
-- $12 text: the idempotency key
-- $13 text: the compression
-- $14 jsonb: the selection
-- $15 boolean: true if the request said which export was loaded last
-- $16 uuid: that export
-- $17 text: its SHA-256
-- $18 text: the channel of notifications
-- $19 bigint: the size at which a file ends
-- $20 text: its place in a trace
insert into exports as e (
  id, consumer_id, dataset, lane_sequence, export_type, format, max_attempts, output_filename, destination_id,
  created_at, retry_of, idempotency_key, compression, selection, has_after, after_job, after_sha256,
  max_file_bytes, traceparent)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $19, $20)
on conflict (lower(output_filename)) do nothing
returning pg_notify($18, ''),
  -- include job_columns.sql
