-- store.queue.beat
-- Extends a lease and records the progress of the export. Commits without waiting for the disk: losing a renewal in a
-- crash of Postgres has the same effect as a late renewal.
-- $1 uuid: the job
-- $2 uuid: the lease token
-- $3 float8: the length of the lease in seconds
-- $4 smallint: the progress in percent
-- $5 bigint: the rows so far
-- $6 bigint: the bytes so far
update exports
set lease_expires_at = clock_timestamp() + make_interval(secs => $3),
    progress = greatest(progress, $4), rows_exported = $5, bytes_written = $6
where id = $1 and lease_token = $2 and status = 'processing'
returning cancel_requested_at is not null, set_config('synchronous_commit', 'off', true)
