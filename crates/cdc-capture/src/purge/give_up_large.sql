-- source.purge.give_up_large
-- Gives up positions in the table that holds most, if all tables together hold more than the bound: each position with
-- which they still would, so those that are furthest behind. A position younger than an hour, and one whose lane has a
-- job with a live lease, is spared up to twice the bound.
-- $1 bigint: the bytes of the log that positions may hold
-- $2 timestamptz: the present time; null: no clock is believed, and all positions are spared so
with marks as materialized (
  select w.table_oid, mark.snapshot::text as snapshot
  from watermarks w
  cross join lateral (values (w.live_snapshot), (w.deletions_snapshot)) mark (snapshot)
  where mark.snapshot is not null
  group by 1, 2),
-- include purge/held.sql
, fullest as (
  select held.table_oid, every_table.bytes - held.bytes as others
  from held
  cross join (select sum(bytes) as bytes from held) every_table
  where every_table.bytes > $1
  order by held.bytes desc, held.table_oid
  limit 1),
positions as (
  select w.id, w.version,
    live.bytes > case when spared.live then $1 * 2 else $1 end - fullest.others as live_is_over,
    deletions.bytes > case when spared.deletions then $1 * 2 else $1 end - fullest.others as deletions_are_over,
    coalesce(deletions.bytes, live.bytes) > $1 * 2 - fullest.others as is_over_twice
  from fullest
  join watermarks w using (table_oid)
  left join unseen live on live.table_oid = w.table_oid and live.snapshot = w.live_snapshot::text
  left join unseen deletions on deletions.table_oid = w.table_oid and deletions.snapshot = w.deletions_snapshot::text
  cross join lateral (
    select e.is_running or w.saved_at > $2 - interval '1 hour' as live,
      e.is_running or w.deletions_saved_at > $2 - interval '1 hour' as deletions
    from (
      select $2 is null or exists (
        select from cdc_export.running_exports r
        where r.consumer_id = w.consumer_id and r.dataset = w.dataset
          and r.lease_expires_at > $2) as is_running) e) spared)
update watermarks w
set deletions_snapshot = null, live_snapshot = case when p.live_is_over then null else w.live_snapshot end,
    log_lost = case when p.live_is_over then 'all' else 'deletions' end, version = w.version + 1
from positions p
where w.id = p.id and w.version = p.version and (p.live_is_over or p.deletions_are_over)
returning w.consumer_id, w.dataset, w.log_lost, case when p.is_over_twice then 'twice_the_bytes' else 'bytes' end
