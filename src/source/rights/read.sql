-- source.rights.read
-- $1 text[]: tables
-- $2 text[]: for each, its schema; null: none is named
-- $3 text[]: for each, its name without a schema
--
-- Looking a name up in a schema that the role may not use is an error. SELECT is asked of the whole table: an export
-- locks it, and rights to its columns are not enough for that.
--
-- What a view reads is found by the catalogs, without a lock. Each view is read as its owner, or as the current role if
-- it is a `security_invoker`, whatever views are above it. A relation of which a view names no column (`count(*)`) is
-- left out: a constant of type regclass looks the same and needs no right.
select quote_ident(current_user) as role, named.may_use_schema, t.oid, n.nspname::text as schema_name,
  t.relname::text as table_name, t.relkind::text as kind, has_table_privilege(t.oid, 'select') as may_select,
  row_security_active(t.oid) as has_row_security, t.relispopulated as is_populated, beneath.lacks,
  beneath.schema_name as beneath_schema, beneath.table_name as beneath_table, beneath.reader
from (
  select its.place, its.relation, its.schema_name, its.table_name, n.oid as schema_oid,
    coalesce(has_schema_privilege(n.oid, 'usage'), true) as may_use_schema
  from unnest((select $1), (select $2), (select $3)) with ordinality as its (relation, schema_name, table_name, place)
  left join pg_namespace n on n.nspname = its.schema_name
  offset 0) named
-- `offset 0`, so that each table is looked up by an index.
left join lateral (
  select t.oid, t.relname, t.relnamespace, t.relkind, t.relispopulated
  from pg_class t
  where t.oid = case
    when named.may_use_schema then cdc_export.table_of_role(named.relation)
    else (select c.oid from pg_class c where c.relnamespace = named.schema_oid and c.relname = named.table_name)
    end
  offset 0) t on true
left join pg_namespace n on n.oid = t.relnamespace
left join lateral (
  with recursive views (oid) as (
    select t.oid where t.relkind = 'v'
    union
    select d.refobjid
    from views v
    join pg_rewrite r on r.ev_class = v.oid and r.ev_type = '1'
    join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass
      and d.refobjsubid > 0
    join pg_class c on c.oid = d.refobjid and c.relkind = 'v')
  select found.lacks, n.nspname::text as schema_name, c.relname::text as table_name, quote_ident(o.rolname) as reader
  from views
  join pg_class v on v.oid = views.oid
  join pg_roles o on case
    when coalesce((select p.option_value::bool from pg_options_to_table(v.reloptions) p
      where p.option_name = 'security_invoker'), false) then o.rolname = current_user
    else o.oid = v.relowner end
  join pg_rewrite r on r.ev_class = v.oid and r.ev_type = '1'
  join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass
    and d.refobjsubid > 0 and d.refobjid <> v.oid
  join pg_class c on c.oid = d.refobjid and c.relkind in ('r', 'p', 'v', 'm', 'f')
  join pg_namespace n on n.oid = c.relnamespace
  cross join lateral (select case
    when not has_column_privilege(o.oid, c.oid, d.refobjsubid::int2, 'select') then 'select'
    -- LOCK of a view locks these kinds beneath it too, each with the whole table's rights.
    when c.relkind in ('r', 'p', 'v') and not has_table_privilege(o.oid, c.oid, 'select, update, delete, truncate')
      then 'select'
    when c.relrowsecurity and not o.rolsuper and not o.rolbypassrls
      and (c.relforcerowsecurity or not pg_has_role(o.oid, c.relowner, 'usage')) then 'bypassrls'
    when not c.relispopulated then 'rows' end as lacks) found
  where found.lacks is not null
  order by found.lacks = 'rows', n.nspname, c.relname limit 1) beneath on true
order by named.place
