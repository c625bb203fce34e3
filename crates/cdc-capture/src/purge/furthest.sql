-- The position in each table that is furthest behind.
select table_oid, snapshot::text as snapshot
from (
  select distinct on (table_oid) table_oid, coalesce(deletions_snapshot, live_snapshot) as snapshot
  from watermarks
  where table_oid is not null and coalesce(deletions_snapshot, live_snapshot) is not null
  order by table_oid, pg_snapshot_xmax(coalesce(deletions_snapshot, live_snapshot)),
    pg_snapshot_xmin(coalesce(deletions_snapshot, live_snapshot))) furthest
