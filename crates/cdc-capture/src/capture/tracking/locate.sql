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
  cdc_export.uncapturable(target.oid) as uncapturable, cdc_export.primary_key(target.oid) as primary_key,
  capture.logged_key, capture.captured, capture.is_log_altered, capture.set,
  coalesce(capture.logs_every_truncate, false) as logs_every_truncate,
  quote_ident(current_user) as role,
  case when not pg_has_role(target.relowner, 'usage') then pg_get_userbyid(target.relowner)::text end as other_owner,
  has_schema_privilege('cdc_export', 'create') as may_make_functions
from target
cross join capture
