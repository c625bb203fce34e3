-- source.description.describe
-- $1 text: the table
with recursive target as materialized (
  select t.oid, t.relkind, t.relispartition, t.relname, n.nspname
  from pg_class t
  join pg_namespace n on n.oid = t.relnamespace
  where t.oid = to_regclass($1))

-- include captured.sql

select sizes.rows, sizes.bytes::bigint as bytes, capture.captured, capture.logged_key, capture.mute_role
from target
cross join capture
-- The sizes as Postgres counted them last: reading them now would wait for a lock on the table.
cross join lateral (
  -- A table that was never counted has -1 rows. In Postgres 13 it has 0 rows in 0 pages, as an empty table does.
  select sum(p.reltuples) filter (
      where p.reltuples >= 0
        and (p.relpages > 0 or current_setting('server_version_num')::int >= 140000)) as rows,
    coalesce(sum(p.relpages + coalesce(x.relpages, 0)), 0) * current_setting('block_size')::bigint as bytes
  from pg_class p
  left join pg_class x on x.oid = p.reltoastrelid
  where case target.relkind
    when 'p' then p.oid in (select relid from pg_partition_tree(target.oid) where isleaf)
    else p.oid = target.oid end) sizes
