-- source.purge.purge
-- $1 bigint: the number of rows that are removed at most
--
-- Nobody needs a row that this statement sees and no held snapshot protects: a hold that this statement doesn't see yet
-- belongs to an export that still has to take its snapshot.
with held as materialized (
  -- As texts, because snapshots can't be compared.
  select snap::pg_snapshot as snap
  from (
    select coalesce(deletions_snapshot, live_snapshot)::text as snap from watermarks
    union
    select purge_hold::text from exports where status = 'processing') texts
  where snap is not null),
in_progress as materialized (select distinct pg_snapshot_xip(snap) as xid from held),
bounds as (
  -- The bound is the smallest xmax of the snapshots that are held, not an xmin: one idle writer must not pin the log.
  -- Not min(xid8), which Postgres has since 15.
  select coalesce((select pg_snapshot_xmax(snap) as x from held order by x limit 1), now.xmax) as below,
    now.xmax as future
  from (select pg_snapshot_xmax(pg_current_snapshot()) as xmax) now)
delete from cdc_export.change_log where ctid = any (array(
  select l.ctid
  from cdc_export.change_log l, bounds b
  -- A snapshot has seen what is below its xmax, except the transactions that were in progress when it was taken.
  where l.xid < b.below and l.xid not in (select xid from in_progress)
    -- A visible row from the future came with a dump of another cluster, whose transactions were further on.
    or l.xid >= b.future
  limit $1))
