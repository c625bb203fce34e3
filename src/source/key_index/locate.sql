-- The columns of the unique index that tells the rows of a table apart by just the columns of the key; no row: there is
-- none. The parameters are those of `table_schema/columns.sql`.
select a.attname::text as name,
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
-- The unique index on just these columns; the primary key, if there are several.
from (
  select x.indrelid, x.indkey, x.indclass, x.indcollation, x.indnkeyatts
  from pg_index x
  where x.indrelid = to_regclass($1) and x.indisunique and x.indisvalid and x.indpred is null and x.indexprs is null
    and (select array_agg(a.attname::text order by a.attname::text)
         from pg_attribute a
         where a.attrelid = x.indrelid and a.attnum = any ((x.indkey::int2[])[0:x.indnkeyatts - 1]))
      = (select array_agg(name order by name)
         from unnest(coalesce($2, cdc_export.primary_key(to_regclass($1)))) as name)
  order by x.indisprimary desc, x.indexrelid limit 1) x
cross join lateral unnest(x.indkey::int2[], x.indclass::oid[], x.indcollation::oid[])
  with ordinality as part (attnum, opclass, coll, place)
join pg_attribute a on a.attrelid = x.indrelid and a.attnum = part.attnum
where part.place <= x.indnkeyatts
