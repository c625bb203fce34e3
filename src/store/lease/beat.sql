-- store.queue.beat
-- Extends a lease and records the progress of the export. Commits without waiting for the disk: losing a renewal in a
-- crash of Postgres has the same effect as a late renewal.
-- $1 uuid: the job, or the batch, whose first member has the lease
-- $2 uuid: the lease token
-- $3 float8: the length of the lease in seconds
-- $4 smallint: the progress in percent
-- $5 bigint: the rows so far
-- $6 bigint: the bytes so far
-- $7 uuid: the job that is read
-- $8 bigint: the rows that are expected; null: they were not counted
with extended as (
  update exports e
  set lease_expires_at = case e.id when $1 then clock_timestamp() + make_interval(secs => $3) else 'infinity' end,
      progress = case e.id when $7 then greatest(e.progress, $4) else e.progress end,
      rows_exported = case e.id when $7 then $5 else e.rows_exported end,
      bytes_written = case e.id when $7 then $6 else e.bytes_written end,
      rows_expected = case e.id when $7 then $8 else e.rows_expected end
  where e.id in ($1, $7) and e.lease_token = $2 and e.status = 'processing'
  returning e.id, e.cancel_requested_at is not null as is_cancelled
)
select is_cancelled, set_config('synchronous_commit', 'off', true)
from extended
where id = $1
