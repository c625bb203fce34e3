-- source.rights.read
-- $1 text: the table
-- $2 text: its schema; null: none is named
-- $3 text: its name without a schema
--
-- Looking a name up in a schema that the role may not use is an error, also when the planner does it. SELECT is asked
-- of the whole table: an export locks it, and rights to its columns are not enough for that.
with named as materialized (
  select $1::text as relation, coalesce(has_schema_privilege(n.oid, 'usage'), true) as may_use_schema
  from (select) one
  left join pg_namespace n on n.nspname = $2)
select quote_ident(current_user) as role, named.may_use_schema, n.nspname::text as schema_name,
  t.relname::text as table_name, has_table_privilege(t.oid, 'select') as may_select,
  row_security_active(t.oid) as has_row_security
from named
left join pg_class t on t.oid = case
  when named.may_use_schema then cdc_export.table_of_role(named.relation)
  else (
    select c.oid
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = $2 and c.relname = $3)
  end
left join pg_namespace n on n.oid = t.relnamespace
