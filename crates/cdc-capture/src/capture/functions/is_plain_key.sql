-- source.capture.is_plain_key
-- $1 oid[]: the tables
-- $2 jsonb[]: for each, the names of the columns of a key
--
-- For each key: true if its texts depend on no setting of a session, by the types that are known for that.
select not exists (
  select from jsonb_array_elements_text(keys.columns) part (name)
  left join pg_attribute a on a.attrelid = keys.table_oid and a.attname = part.name and not a.attisdropped
  where a.atttypid is null
    or a.atttypid <> all ('{int2,int4,int8,numeric,oid,uuid,text,varchar,bpchar,bool,inet,cidr}'::regtype[]))
from unnest((select $1), (select $2)) with ordinality as keys (table_oid, columns, place)
order by keys.place
