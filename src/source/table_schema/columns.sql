-- source.table_schema.columns
-- $1 text: the table
-- $2 text[]: the columns of the key; null: those of the primary key
select a.attname::text as name, a.attnum as number, format_type(base.oid, -1) as base_type,
  cdc_export.type_of_role(a.atttypid, a.atttypmod) as type_name, cdc_export.type_of_role(base.oid, -1) as saved_type,
  coalesce(
    -- The schema of the operators of the type's default order; without one, the schema of the type.
    (select p.oprnamespace::regnamespace::text
     from pg_opclass s join pg_am m on m.oid = s.opcmethod and m.amname = 'btree'
     join pg_amop o on o.amopfamily = s.opcfamily and o.amoplefttype = s.opcintype and o.amoprighttype = s.opcintype
       and o.amopstrategy = 3 and o.amoppurpose = 's'
     join pg_operator p on p.oid = o.amopopr
     where s.opcintype = base.oid and s.opcdefault limit 1),
    case base.typtype when 'b' then case base.typelem when 0 then base.typnamespace::regnamespace::text end end,
    'pg_catalog') as operators,
  case when base.typnamespace = 'pg_catalog'::regnamespace then base.typname::text end as own_type,
  base.modifier, format_type(base.oid, base.modifier) as declared_base, base.typtype = 'e' as is_enum,
  -- A constraint that isn't validated holds for new rows only.
  a.attnotnull and not exists (
    select from pg_constraint n
    where n.conrelid = a.attrelid and n.contype = 'n' and n.conkey = array[a.attnum]
      and not n.convalidated) as not_null,
  c.relkind::text as table_kind,
  -- A subquery, so that it runs once and not for each column.
  array_position((select cdc_export.primary_key(to_regclass($1))), a.attname::text) as key_place,
  a.xmin::text as version, a.attcollation as collation,
  base.oid >= 16384 or a.attgenerated <> '' as may_change, a.attgenerated = 'v' as is_virtual,
  c.relnatts as width,
  key_part.equals as key_equals, key_part.collation as key_collation, key_part.is_deterministic as key_is_deterministic
from pg_attribute a
join pg_class c on c.oid = a.attrelid
left join (
  -- include key_index/locate.sql
) key_part on key_part.name = a.attname
-- The base type of a domain; any other type is its own base.
cross join lateral (
  with recursive base as (
    select t.oid, t.typname, t.typnamespace, t.typelem, t.typtype, t.typbasetype, t.typtypmod, a.atttypmod as modifier
    from pg_type t where t.oid = a.atttypid
    union all
    select t.oid, t.typname, t.typnamespace, t.typelem, t.typtype, t.typbasetype, t.typtypmod, d.typtypmod
    from base d join pg_type t on t.oid = d.typbasetype where d.typtype = 'd')
  select oid, typname, typnamespace, typelem, typtype, modifier from base where typtype <> 'd') base
where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
order by a.attnum
