-- The bytes of the change log that are kept for snapshots, estimated from a sample. A statement that includes this
-- piece begins with the CTE `marks`, whose rows have a table and the text of a snapshot.
sample as materialized (
  -- A thousand blocks of the log, chosen at random, or all of a smaller log. A row has 56 bytes beside its values.
  select table_oid, xid, sum(56 + coalesce(pg_column_size(key), 0)) as bytes
  from cdc_export.change_log tablesample system (least(100, 1e5 * current_setting('block_size')::integer
    / greatest(pg_relation_size('cdc_export.change_log'), 1)))
  group by table_oid, xid),
scale as (
  -- A very large row in the sample doesn't stand for others: rows have no more bytes than their files.
  select least(
    greatest(pg_relation_size('cdc_export.change_log') / (1e3 * current_setting('block_size')::integer), 1),
    pg_table_size('cdc_export.change_log') / nullif(sum(bytes), 0)) as factor
  from sample),
-- A snapshot has not seen what began after it, and what was in progress.
began_after as (
  select table_oid, snapshot, bytes
  from (
    select table_oid, snapshot, coalesce(sum(bytes)
      over (partition by table_oid order by xid desc, snapshot nulls first rows unbounded preceding), 0) as bytes
    from (
      select table_oid, xid, bytes, null as snapshot from sample
      union all
      select table_oid, pg_snapshot_xmax(snapshot::pg_snapshot), 0, snapshot from marks) either) running
  where snapshot is not null),
in_progress as (
  select m.table_oid, m.snapshot, sum(s.bytes) as bytes
  from marks m
  cross join lateral pg_snapshot_xip(m.snapshot::pg_snapshot) open (xid)
  join sample s on s.table_oid = m.table_oid and s.xid = open.xid
  group by m.table_oid, m.snapshot),
unseen as materialized (
  select a.table_oid, a.snapshot, ((a.bytes + coalesce(p.bytes, 0)) * coalesce(scale.factor, 1))::bigint as bytes
  from began_after a
  left join in_progress p using (table_oid, snapshot)
  cross join scale),
-- An earlier snapshot has seen nothing that a later one has not.
held as materialized (select table_oid, max(bytes) as bytes from unseen group by table_oid)
