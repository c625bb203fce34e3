-- source.purge.purge
-- Removes rows of each table that all positions in that table have seen. Nobody needs a row that this statement sees
-- and no held snapshot protects: a hold that this statement doesn't see yet belongs to an export that still has to take
-- its snapshot.
-- $1 bigint: the number of rows that are removed at most
with recursive tables as (
  -- One step of the index for each table.
  (select table_oid from cdc_export.change_log order by table_oid limit 1)
  union all
  select (
    select l.table_oid from cdc_export.change_log l where l.table_oid > t.table_oid order by l.table_oid limit 1)
  from tables t where t.table_oid is not null),
held as materialized (
  -- As texts, because snapshots can't be compared.
  select table_oid, snap::pg_snapshot as snap
  from (
    select table_oid, coalesce(deletions_snapshot, live_snapshot)::text as snap from watermarks
    union
    -- The table of a running export may be another one than that of its consumer's position, so its hold has none.
    select null, purge_hold::text from cdc_export.running_exports) texts
  where snap is not null),
in_progress as materialized (
  select distinct table_oid, xip.xid from held cross join lateral pg_snapshot_xip(snap) xip (xid)),
first_ends as materialized (
  -- Not min(xid8), which Postgres has since 15.
  select distinct on (table_oid) table_oid, pg_snapshot_xmax(snap) as xmax from held
  order by table_oid, pg_snapshot_xmax(snap)),
bounds as materialized (
  -- The bound is the smallest xmax of the snapshots that are held, not an xmin: one idle writer must not pin the log.
  select t.table_oid, now.xmax as future,
    least(first_end.xmax, (select xmax from first_ends where table_oid is null), now.xmax) as below
  from tables t
  left join first_ends first_end using (table_oid)
  cross join (select pg_snapshot_xmax(pg_current_snapshot()) as xmax) now
  where t.table_oid is not null)
delete from cdc_export.change_log where ctid = any (array(
  select seen.ctid
  from bounds b
  cross join lateral (
    -- A snapshot has seen what is below its xmax, except the transactions that were in progress when it was taken.
    select l.ctid
    from cdc_export.change_log l
    where l.table_oid = b.table_oid and l.xid < b.below
      and (b.table_oid, l.xid) not in (select table_oid, xid from in_progress where table_oid is not null)
      and l.xid not in (select xid from in_progress where table_oid is null)
    union all
    -- A visible row from the future came with a dump of another cluster, whose transactions were further on.
    select l.ctid
    from cdc_export.change_log l
    where l.table_oid = b.table_oid and l.xid >= b.future
    offset 0) seen -- one table after the other, by the index
  limit $1))
