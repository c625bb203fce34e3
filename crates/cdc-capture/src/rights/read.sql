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
with recursive named as materialized (
  select input.place, input.relation, input.schema_name, input.table_name, n.oid as schema_oid,
    coalesce(has_schema_privilege(n.oid, 'usage'), true) as may_use_schema
  from unnest((select $1), (select $2), (select $3)) with ordinality as input (relation, schema_name, table_name, place)
  left join pg_namespace n on n.nspname = input.schema_name),

tables as materialized (
  select named.place, named.may_use_schema, t.*
  from named
  -- `offset 0`, so that each table is looked up by an index.
  left join lateral (
    select t.oid, t.relname, t.relnamespace, t.relkind, t.relispopulated
    from pg_class t
    where t.oid = case
      when named.may_use_schema then cdc_export.table_of_role(named.relation)
      else (select c.oid from pg_class c where c.relnamespace = named.schema_oid and c.relname = named.table_name)
      end
    offset 0) t on true),

-- Views and the relations that each reads, with the numbers of the columns. It begins with the views of $1, which null
-- reads.
reads (view, oid, kind, columns) as (
  select null::oid, t.oid, t.relkind, null::int2[] from tables t where t.relkind = 'v'
  union
  select reads.oid, relation.*
  from reads
  cross join lateral (
    select c.oid, c.relkind, array_agg(distinct d.refobjsubid::int2)
    from pg_rewrite r
    join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass
      and d.refobjsubid > 0 and d.refobjid <> r.ev_class
    join pg_class c on c.oid = d.refobjid and c.relkind in ('r', 'p', 'v', 'm', 'f')
    where r.ev_class = reads.oid and r.ev_type = '1'
    group by c.oid, c.relkind) relation
  where reads.kind = 'v'),

-- The rights that the reader of a view lacks, for that view and for each view above it.
lacking (view, lacks, schema_name, table_name, reader) as (
  select reads.view, found.lacks, n.nspname::text, c.relname::text, quote_ident(o.rolname)
  from reads
  join pg_class v on v.oid = reads.view
  join pg_class c on c.oid = reads.oid
  join pg_namespace n on n.oid = c.relnamespace
  join pg_roles o on o.oid = case
    when coalesce((select p.option_value::bool from pg_options_to_table(v.reloptions) p
      where p.option_name = 'security_invoker'), false)
    then (select r.oid from pg_roles r where r.rolname = current_user) else v.relowner end
  cross join lateral (select case
    when not (select bool_and(has_column_privilege(o.oid, c.oid, number, 'select')) from unnest(reads.columns) number)
      then 'select'
    -- LOCK of a view locks these kinds beneath it too, each with the whole table's rights.
    when c.relkind in ('r', 'p', 'v') and not has_table_privilege(o.oid, c.oid, 'select, update, delete, truncate')
      then 'select'
    when c.relrowsecurity and not o.rolsuper and not o.rolbypassrls
      and (c.relforcerowsecurity or not pg_has_role(o.oid, c.relowner, 'usage')) then 'bypassrls'
    when not c.relispopulated then 'rows' end as lacks) found
  where found.lacks is not null
  union
  select reads.view, lacking.lacks, lacking.schema_name, lacking.table_name, lacking.reader
  from lacking
  join reads on reads.oid = lacking.view
  where reads.view is not null)

select quote_ident(current_user) as role, t.may_use_schema, n.nspname::text as schema_name,
  t.relname::text as table_name, t.relkind::text as kind, has_table_privilege(t.oid, 'select') as may_select,
  row_security_active(t.oid) as has_row_security, t.relispopulated as is_populated, beneath.lacks,
  beneath.schema_name as beneath_schema, beneath.table_name as beneath_table, beneath.reader
from tables t
left join pg_namespace n on n.oid = t.relnamespace
left join (
  select distinct on (lacking.view) lacking.*
  from lacking
  order by lacking.view, lacking.lacks = 'rows', lacking.schema_name, lacking.table_name) beneath
  on beneath.view = t.oid
order by t.place
