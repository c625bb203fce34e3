-- source.purge.give_up
-- $1 double precision: the rows of the log that a consumer may hold
-- $2 double precision: the seconds that it may hold them
with log as (
  select coalesce(pg_sequence_last_value(
    pg_get_serial_sequence('cdc_export.change_log', 'sequence')::regclass), 0) as sequence),
-- The part of its caps that each position uses; deletions are counted from the last delta or full export. Incremental
-- exports alone would hold the deletions, and the log with them, for ever.
held as (
  select p.id,
    greatest((log.sequence - p.log_sequence)::float8 / $1,
      extract(epoch from clock_timestamp() - p.saved_at)::float8 / $2) as live,
    greatest((log.sequence - p.deletions_log_sequence)::float8 / $1,
      extract(epoch from clock_timestamp() - p.deletions_saved_at)::float8 / $2) as deletions
  from watermarks p
  cross join log
  where coalesce(p.live_snapshot, p.deletions_snapshot) is not null)
update watermarks w
set deletions_snapshot = null, live_snapshot = case when held.live >= 2 then null else live_snapshot end,
    log_lost = case when held.live >= 2 then 'all' else 'deletions' end, version = version + 1
from held
where w.id = held.id
  and (held.live >= 2 or w.deletions_snapshot is not null and greatest(held.live, held.deletions) >= 1)
returning w.consumer_id, w.log_lost
