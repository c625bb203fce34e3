-- source.guard.parts
-- $1 jsonb[]: for each of several tables, its name and the numbers of columns
select input.place, parts.name, parts.version
from (
  select parameter.place, parameter.columns ->> 'table' as relation,
    array(select number::smallint from jsonb_array_elements_text(parameter.columns -> 'numbers') as number) as numbers
  from unnest((select $1)) with ordinality as parameter (columns, place)) input
cross join lateral (
  with recursive types (oid) as (
    select a.atttypid
    from pg_attribute a
    where a.attrelid = to_regclass(input.relation) and a.attnum = any (input.numbers)
    union
    -- The base of a domain, the elements of an array, the bounds of a range, the attributes of a row.
    select d.refobjid
    from types p
    join pg_type t on t.oid = p.oid
    cross join lateral (
      select d.refobjid from pg_depend d
      where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.refclassid = 'pg_type'::regclass
      union all
      select d.refobjid from pg_depend d
      where d.classid = 'pg_class'::regclass and d.objid = t.typrelid and d.refclassid = 'pg_type'::regclass) d)
  -- The labels of an enum. Adding a label changes no other label. A label that was renamed and renamed back has another
  -- xmin.
  select 'label ' || e.oid as name, e.xmin::text as version from types join pg_enum e on e.enumtypid = types.oid
  union all
  -- The attributes of a row type.
  select 'row ' || t.oid,
    md5(string_agg(format('%s %s %s %s', f.attnum, f.attname, f.atttypid, f.atttypmod), E'\n' order by f.attnum))
  from types
  join pg_type t on t.oid = types.oid
  join pg_attribute f on f.attrelid = t.typrelid and f.attnum > 0 and not f.attisdropped
  group by t.oid
  union all
  -- The expression of a generated column. A partition may have another expression.
  select format('column %s %s', a.attrelid, a.attnum), md5(d.adbin::text)
  from pg_attribute r
  join pg_class c on c.oid = r.attrelid
  cross join lateral (
    -- The functions of Postgres for that lock each partition.
    with recursive relation (oid) as (
      select r.attrelid
      union all
      select i.inhrelid
      from relation join pg_inherits i on i.inhparent = relation.oid
      where c.relkind = 'p' and to_jsonb(i) ->> 'inhdetachpending' is distinct from 'true')
    select relation.oid from relation) relation
  join pg_attribute a on a.attrelid = relation.oid and a.attname = r.attname
  join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  where r.attrelid = to_regclass(input.relation) and r.attnum = any (input.numbers) and r.attgenerated <> '') parts
order by input.place
