-- source.table_schema.columns
-- $1 text[]: tables; null: one that is hidden from the role
-- $2 jsonb[]: for each, the names of the columns of the key; null: those of the primary key
-- $3 text[]: for each, the dataset
-- `offset 0`, so that each table is looked up by indexes: one table costs the same, however many there are.
with named as materialized (
  select input.place, c.oid, c.relkind, c.relnatts,
    c.relkind = 'r' and exists (select from pg_inherits i where i.inhparent = c.oid) as has_children,
    cdc_export.primary_key(c.oid) as primary_key, input.key,
    array(select m.name from cdc_export.masked_columns m where m.dataset = input.dataset) as masked
  from unnest((select $1), (select $2), (select $3)) with ordinality as input (name, key, dataset, place)
  cross join lateral (
    select c.oid, c.relkind, c.relnatts from pg_class c where c.oid = to_regclass(input.name) offset 0) c),

key_parts as materialized (
  -- include key_index/locate.sql
),

columns as materialized (
  select a.*, named.place, named.relkind, named.relnatts, named.primary_key, named.has_children, named.masked
  from named
  cross join lateral (
    select a.attrelid, a.attname, a.attnum, a.atttypid, a.atttypmod, a.attnotnull, a.attgenerated,
      a.attcollation, a.xmin
    from pg_attribute a
    where a.attrelid = named.oid and a.attnum > 0 and not a.attisdropped
    offset 0) a),

-- The types, each once: their names take most of the time.
types as materialized (
  select used.atttypid, used.atttypmod, base.oid, base.modifier, format_type(base.oid, -1) as base_type,
    cdc_export.type_of_role(used.atttypid, used.atttypmod) as type_name,
    base.oid::text as saved_type,
    coalesce(
      -- The schema of the operators of the type's default order; without one, the schema of the type.
      (select p.oprnamespace::regnamespace::text
       from pg_opclass s join pg_am m on m.oid = s.opcmethod and m.amname = 'btree'
       join pg_amop o on o.amopfamily = s.opcfamily and o.amoplefttype = s.opcintype
         and o.amoprighttype = s.opcintype and o.amopstrategy = 3 and o.amoppurpose = 's'
       join pg_operator p on p.oid = o.amopopr
       where s.opcintype = base.oid and s.opcdefault limit 1),
      case base.typtype when 'b' then case base.typelem when 0 then base.typnamespace::regnamespace::text end end,
      'pg_catalog') as operators,
    case when base.typnamespace = 'pg_catalog'::regnamespace then base.typname::text end as own_type,
    format_type(base.oid, base.modifier) as declared_base,
    case when base.oid <> used.atttypid then cdc_export.type_of_role(base.oid, base.modifier) end as domain_base,
    base.typtype = 'e' as is_enum,
    (select min(quote_ident(n.nspname)) from pg_namespace n
     where n.oid in (base.typnamespace, (select t.typnamespace from pg_type t where t.oid = used.atttypid))
       and not has_schema_privilege(n.oid, 'usage')) as closed_schema
  from (select distinct a.atttypid, a.atttypmod from columns a) used
  -- The base type of a domain; any other type is its own base.
  cross join lateral (
    with recursive base as (
      select t.oid, t.typname, t.typnamespace, t.typelem, t.typtype, t.typbasetype, t.typtypmod,
        used.atttypmod as modifier
      from pg_type t where t.oid = used.atttypid
      union all
      select t.oid, t.typname, t.typnamespace, t.typelem, t.typtype, t.typbasetype, t.typtypmod, d.typtypmod
      from base d join pg_type t on t.oid = d.typbasetype where d.typtype = 'd')
    select oid, typname, typnamespace, typelem, typtype, modifier from base where typtype <> 'd') base)

select a.place, a.attname::text as name, a.attnum as number, base.base_type, base.type_name, base.saved_type,
  base.operators, base.own_type, base.modifier, base.declared_base, base.domain_base, base.is_enum, base.closed_schema,
  -- A constraint that isn't validated holds for new rows only.
  a.attnotnull and not exists (
    select from pg_constraint n
    where n.conrelid = a.attrelid and n.contype = 'n' and n.conkey = array[a.attnum]
      and not n.convalidated) as not_null,
  a.relkind::text as table_kind, array_position(a.primary_key, a.attname::text) as key_place,
  a.xmin::text as version, a.attcollation as collation,
  base.oid >= 16384 or a.attgenerated <> '' as may_change,
  a.relnatts as width, part.equals as key_equals, part.collation as key_collation,
  part.is_deterministic as key_is_deterministic, a.has_children, a.masked
from columns a
join types base on (base.atttypid, base.atttypmod) = (a.atttypid, a.atttypmod)
left join key_parts part on part.place = a.place and part.name = a.attname::text
order by a.place, a.attnum
