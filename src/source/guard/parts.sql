-- source.guard.parts
-- $1 text: the table
-- $2 smallint[]: the numbers of the columns
with recursive types (oid) as (
  select a.atttypid from pg_attribute a where a.attrelid = to_regclass($1) and a.attnum = any ($2)
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
select 'label ' || e.oid, e.xmin::text from types join pg_enum e on e.enumtypid = types.oid
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
cross join lateral (select r.attrelid union select relid from pg_partition_tree(r.attrelid)) relation (oid)
join pg_attribute a on a.attrelid = relation.oid and a.attname = r.attname
join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where r.attrelid = to_regclass($1) and r.attnum = any ($2) and r.attgenerated <> ''
