-- source.capture.locate
-- $1 text: the table, which the role's own search_path finds
with recursive target as materialized (
  select t.oid, t.relkind, t.relispartition, t.relname, n.nspname, t.relowner
  from pg_class t
  join pg_namespace n on n.oid = t.relnamespace
  where t.oid = cdc_export.table_of_role($1))

-- include captured.sql

select target.oid, target.nspname::text as schema_name, target.relname::text as table_name,
  target.relkind::text as kind,
  case when target.relispartition then pg_partition_root(target.oid)::text end as parent,
  target.relkind = 'r' and exists (select from pg_inherits i where i.inhparent = target.oid) as has_children,
  not target.relispartition and exists (select from pg_inherits i where i.inhrelid = target.oid) as is_child,
  parts.is_unlogged, parts.has_foreign, cdc_export.primary_key(target.oid) as primary_key,
  capture.logged_key, capture.captured, capture.is_log_altered, capture.set,
  coalesce(capture.logs_every_truncate, false) as logs_every_truncate,
  quote_ident(current_user) as role,
  case when not pg_has_role(target.relowner, 'usage') then pg_get_userbyid(target.relowner)::text end as other_owner,
  has_schema_privilege('cdc_export', 'create') as may_make_functions
from target
cross join capture
cross join lateral (
  select coalesce(bool_or(p.relpersistence <> 'p'), false) as is_unlogged,
    coalesce(bool_or(p.relkind = 'f'), false) as has_foreign
  from pg_class p
  -- Postgres's function for that would lock each partition.
  where p.oid in (select tree.oid from tree where tree.root = target.oid)) parts
