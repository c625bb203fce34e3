-- The columns of the unique index that tells the rows of each table of `named` apart by just the columns of its key. No
-- row: there is none.
select named.place, a.attname::text as name,
  (select format('operator(%I.%s)', n.nspname, p.oprname)
   from pg_opclass s join pg_am m on m.oid = s.opcmethod and m.amname = 'btree'
   join pg_amop o on o.amopfamily = s.opcfamily and o.amoplefttype = s.opcintype and o.amoprighttype = s.opcintype
     and o.amopstrategy = 3 and o.amoppurpose = 's'
   join pg_operator p on p.oid = o.amopopr
   join pg_namespace n on n.oid = p.oprnamespace
   where s.oid = part.opclass) as equals,
  (select format('%I.%I', n.nspname, l.collname)
   from pg_collation l
   join pg_namespace n on n.oid = l.collnamespace
   where l.oid = part.coll) as collation,
  coalesce((select l.collisdeterministic from pg_collation l where l.oid = part.coll), true) as is_deterministic
from named
-- The unique index on just these columns; the primary key, if there are several.
cross join lateral (
  select x.indrelid, x.indkey, x.indclass, x.indcollation, x.indnkeyatts
  from pg_index x
  where x.indrelid = named.oid and x.indisunique and x.indisvalid and x.indpred is null
    and x.indexprs is null
    and (select array_agg(a.attname::text order by a.attname::text)
         from pg_attribute a
         where a.attrelid = x.indrelid and a.attnum = any ((x.indkey::int2[])[0:x.indnkeyatts - 1]))
      = (select array_agg(name order by name)
         from (
           select jsonb_array_elements_text(named.key) as name
           union all
           select unnest(named.primary_key) where named.key is null) names)
  order by x.indisprimary desc, x.indexrelid limit 1) x
cross join lateral unnest(x.indkey::int2[], x.indclass::oid[], x.indcollation::oid[])
  with ordinality as part (attnum, opclass, coll, place)
cross join lateral (
  select a.attname from pg_attribute a where a.attrelid = x.indrelid and a.attnum = part.attnum offset 0) a
where part.place <= x.indnkeyatts
