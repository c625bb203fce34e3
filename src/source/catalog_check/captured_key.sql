-- source.catalog_check.captured_key
-- $1 text: the table, which the role's own search_path finds
with recursive target as materialized (
  select t.oid, t.relkind, t.relispartition, t.relname, n.nspname
  from pg_class t
  join pg_namespace n on n.oid = t.relnamespace
  where t.oid = cdc_export.table_of_role($1))

-- include captured.sql

select capture.captured, capture.logged_key, capture.mute_role
from capture
