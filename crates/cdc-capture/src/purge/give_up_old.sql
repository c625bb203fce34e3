-- source.purge.give_up_old
-- Gives up positions that are too old. Deletions are counted from the last delta or full export: incremental exports
-- alone would hold the deletions, and the log with them, for ever. The other changes are kept for twice as long.
-- $1 double precision: the seconds for which a position holds the log
-- $2 timestamptz: the present time; null: no clock is believed, and no position is too old
with held as (
  select id, version,
    extract(epoch from $2 - saved_at)::float8 / $1 as live,
    extract(epoch from $2 - deletions_saved_at)::float8 / $1 as deletions
  from watermarks
  where coalesce(live_snapshot, deletions_snapshot) is not null)
update watermarks w
set deletions_snapshot = null, live_snapshot = case when held.live >= 2 then null else live_snapshot end,
    log_lost = case when held.live >= 2 then 'all' else 'deletions' end, version = w.version + 1
from held
where w.id = held.id and w.version = held.version
  and (held.live >= 2 or w.deletions_snapshot is not null and greatest(held.live, held.deletions) >= 1)
returning w.consumer_id, w.dataset, w.log_lost, 'age'
