-- source.description.describe
-- $1 text[]: tables
select input.place, status.*
from unnest((select $1)) with ordinality as input (name, place)
-- Table by table: the planner doesn't know how many triggers there are, and would compare each with each.
cross join lateral (
  with recursive target as materialized (
    select t.oid, t.relkind, t.relispartition, t.relname, n.nspname
    from pg_class t
    join pg_namespace n on n.oid = t.relnamespace
    where t.oid = to_regclass(input.name))

-- include captured.sql

  select sizes.rows, sizes.bytes::bigint as bytes, capture.captured, capture.logged_key, capture.mute_role,
    capture.is_log_altered,
    case when capture.logged_key is null then cdc_export.uncapturable(capture.root) end as uncapturable
  from capture
  -- The sizes as Postgres counted them last: reading them now would wait for a lock on the table.
  cross join lateral (
    -- A table that was never counted has -1 rows. In Postgres 13 it has 0 rows in 0 pages, as an empty table does.
    select sum(p.reltuples) filter (
        where p.reltuples >= 0
          and (p.relpages > 0 or current_setting('server_version_num')::int >= 140000)) as rows,
      coalesce(sum(p.relpages + coalesce(x.relpages, 0)), 0) * current_setting('block_size')::bigint as bytes
    from relations r
    join pg_class p on p.oid = r.oid and p.relkind <> 'p'
    left join pg_class x on x.oid = p.reltoastrelid) sizes) status
