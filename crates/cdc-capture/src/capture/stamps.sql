-- source.capture.stamps
-- $1 oid[]: tables
select stamps.table_oid, stamps.rows, stamps.functions
from unnest((select $1)) as input (oid)
-- Table by table: the planner doesn't know how many triggers there are, and would compare each with each.
cross join lateral (
  with recursive target as materialized (
    select t.oid, t.relkind, t.relispartition, t.relname, n.nspname
    from pg_class t
    join pg_namespace n on n.oid = t.relnamespace
    where t.oid = input.oid)

-- include captured.sql

  select capture.root as table_oid, capture.relations -> capture.root::text ->> 0 as rows, capture.functions
  from capture
  where capture.captured) stamps
