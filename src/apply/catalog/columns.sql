-- apply.catalog.columns
-- Returns the columns of a table in their order, each with its type and the operator that finds equal values.
-- $1 text: the table
select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type_name, a.attnum as number,
  a.attgenerated <> '' as is_generated,
  a.attidentity = 'a' as is_identity,
  format_type(base.oid, base.modifier) as base_type, base.typtype = 'e' as is_enum,
  -- The collation of the column, or of a unique index on it, treats some different texts as equal.
  exists (
    select from pg_collation l
    where not l.collisdeterministic and (l.oid = a.attcollation or exists (
      select from pg_index i
      cross join lateral unnest(i.indkey::int2[], i.indcollation::oid[]) as part (number, collation_oid)
      where i.indrelid = a.attrelid and i.indisunique
        and part.number = a.attnum and part.collation_oid = l.oid))) as folds_texts,
  coalesce((
    select format('operator(%I.%s)', n.nspname, o.oprname)
    from pg_opclass c
    join pg_am m on m.oid = c.opcmethod
    join pg_amop p on p.amopfamily = c.opcfamily
      and p.amoplefttype = c.opcintype and p.amoprighttype = c.opcintype
    join pg_operator o on o.oid = p.amopopr
    join pg_namespace n on n.oid = o.oprnamespace
    where c.opcdefault and m.amname = 'btree' and p.amopstrategy = 3
      and c.opcintype = base.oid), 'operator(pg_catalog.=)') as equal,
  -- True if the type is `money` or `"char"`, or contains one in an array, a range, a domain or a composite type.
  (
    with recursive parts (oid) as (
      select a.atttypid
      union
      select part.oid
      from parts p
      join pg_type t on t.oid = p.oid
      cross join lateral (
        select t.typbasetype as oid where t.typtype = 'd'
        -- Postgres's own types of a fixed length, as `name` and `point`, have an element too.
        union all select t.typelem where t.typelem <> 0 and t.typlen = -1
        -- Postgres has multiranges since 14.
        union all select r.rngsubtype from pg_range r
          where t.oid in (r.rngtypid, (to_jsonb(r) ->> 'rngmultitypid')::oid)
        union all select f.atttypid from pg_attribute f
          where f.attrelid = t.typrelid and f.attnum > 0 and not f.attisdropped) part)
    select bool_or(oid in ('money'::regtype, '"char"'::regtype)) from parts) as depends_on_server
from pg_attribute a
-- The type beneath a domain, which may itself be of a domain; any other type is its own base.
cross join lateral (
  with recursive base as (
    select t.oid, t.typtype, t.typbasetype, t.typtypmod, a.atttypmod as modifier from pg_type t where t.oid = a.atttypid
    union all
    select t.oid, t.typtype, t.typbasetype, t.typtypmod, d.typtypmod
    from base d join pg_type t on t.oid = d.typbasetype where d.typtype = 'd')
  select oid, typtype, modifier from base where typtype <> 'd') base
where a.attrelid = $1::regclass and a.attnum > 0 and not a.attisdropped
order by a.attnum
