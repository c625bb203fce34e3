-- store.queue.claim
-- Claims the ready job whose turn it is, with the other members of its batch, and returns them with the identity of the
-- database.
-- $1 text[]: the formats that the process knows
-- $2 text[]: the datasets in its catalog
-- $3 uuid: its destination
-- $4 uuid[]: the destinations that no process has used for a minute
-- $5 uuid: the new lease token
-- $6 text: the name of the process, for people
-- $7 float8: the length of the lease in seconds
-- $8 timestamptz: the claim scan start: the scan skips jobs with earlier turns
-- $9 boolean: true to wait for the disk; false: a crash of Postgres may undo the claim and the count of its attempt
-- $10 text: the name of the session that will commit the export
with ready as materialized (
  select r.id, r.batch_id
  from exports r
  where r.turn >= $8 and r.run_at <= statement_timestamp() and
    -- include queue/claimable.sql
  order by r.turn, r.created_at
  limit 1
  for update skip locked
),
claimed as (
  select ready.id from ready
  union all
  select member.id
  from ready
  join exports member on member.batch_id = ready.batch_id and member.id <> ready.id
)
update exports e
set status = 'processing', attempt = e.attempt + 1, progress = 0, rows_exported = 0, bytes_written = 0,
    rows_expected = null,
    lease_token = $5, lease_owner = $6,
    -- The lease of a batch is its first member's.
    lease_expires_at = case
      when e.turn < 'infinity' then clock_timestamp() + make_interval(secs => $7) else 'infinity' end,
    destination_id = $3, session = $10,
    purge_hold = pg_current_snapshot(), report = null,
    -- The table was locked a moment ago, so this attempt tries it. An index admits one such attempt for a dataset.
    locked_until = case when exists (
      select from exports l
      where l.dataset = e.dataset and l.locked_until is not null and l.status in ('pending', 'processing'))
      then clock_timestamp() end,
    -- The times of a lane never go back, even if the clock does, because retention counts from the newest job.
    started_at = coalesce(e.started_at, greatest(clock_timestamp(), e.created_at, (
      select l.finished_at from exports l
      where l.consumer_id = e.consumer_id and l.dataset = e.dataset and l.lane_sequence < e.lane_sequence
        and l.status = 'completed'
      order by l.lane_sequence desc limit 1)))
from claimed
where e.id = claimed.id and e.status = 'pending'
returning cdc_export.database_id() as database, e.locked_until is not null as is_trial,
  -- In the order of turns, because the front of other indexes is full of dead entries beside an old snapshot.
  coalesce((
    select true from exports other
    where other.status = 'pending' and other.run_at <= statement_timestamp() and other.id <> e.id
      and other.turn >= $8 and other.turn < 'infinity'
    order by other.turn, other.created_at limit 1), false) as has_others,
  1 + coalesce((
    select l.last_number from cdc_export.lanes l
    where l.consumer_id = e.consumer_id and l.dataset = e.dataset), 0) as next_number,
  (select last.digest from exports last
   where last.consumer_id = e.consumer_id and last.dataset = e.dataset and last.number is not null
   order by last.number desc limit 1) as previous,
  case when not $9 then set_config('synchronous_commit', 'off', true) end,
  -- include job_columns.sql
