-- source.rights.read
-- $1 text[]: tables
-- $2 text[]: for each, its schema; null: none is named
-- $3 text[]: for each, its name without a schema
--
-- Looking a name up in a schema that the role may not use is an error. SELECT is asked of the whole table: an export
-- locks it, and rights to its columns are not enough for that.
select quote_ident(current_user) as role, named.may_use_schema, t.oid, n.nspname::text as schema_name,
  t.relname::text as table_name, t.relkind::text as kind, has_table_privilege(t.oid, 'select') as may_select,
  row_security_active(t.oid) as has_row_security
from (
  select its.place, its.relation, its.schema_name, its.table_name, n.oid as schema_oid,
    coalesce(has_schema_privilege(n.oid, 'usage'), true) as may_use_schema
  from unnest((select $1), (select $2), (select $3)) with ordinality as its (relation, schema_name, table_name, place)
  left join pg_namespace n on n.nspname = its.schema_name
  offset 0) named
-- `offset 0`, so that each table is looked up by an index.
left join lateral (
  select t.oid, t.relname, t.relnamespace, t.relkind
  from pg_class t
  where t.oid = case
    when named.may_use_schema then cdc_export.table_of_role(named.relation)
    else (select c.oid from pg_class c where c.relnamespace = named.schema_oid and c.relname = named.table_name)
    end
  offset 0) t on true
left join pg_namespace n on n.oid = t.relnamespace
order by named.place
