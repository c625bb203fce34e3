-- store.queue.beat
-- Extends a lease and records the progress of the export that is read. Commits without waiting for the disk: losing a
-- renewal in a crash of Postgres has the same effect as a late renewal.
-- $1 uuid: the job
-- $2 uuid: the lease token
-- $3 float8: the length of the lease in seconds
-- $4 smallint: the progress in percent
-- $5 bigint: the rows so far
-- $6 bigint: the bytes so far
-- $7 text: the dataset that is read
-- $8 bigint: the rows that are expected; null: they were not counted
with extended as (
  update cdc_export.jobs
  set lease_expires_at = clock_timestamp() + make_interval(secs => $3)
  where id = $1 and lease_token = $2 and status = 'processing'
  returning id, cancel_requested_at is not null as is_cancelled
),
advanced as (
  update cdc_export.exports e
  set progress = greatest(e.progress, $4), rows_exported = $5, bytes_written = $6, rows_expected = $8
  from extended
  where e.job = extended.id and e.dataset = $7
)
select is_cancelled, set_config('synchronous_commit', 'off', true) from extended
