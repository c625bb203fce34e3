-- source.lag.have_index
-- $1 text[]: tables
-- $2 text[]: for each, a column
select exists (
  select from pg_index x
  join pg_class i on i.oid = x.indexrelid
  join pg_am m on m.oid = i.relam and m.amname = 'btree'
  join pg_attribute a on a.attrelid = x.indrelid and a.attnum = x.indkey[0] and a.attname = input.column_name
  where x.indrelid = to_regclass(input.name) and x.indisvalid and x.indpred is null)
from unnest((select $1), (select $2)) with ordinality as input (name, column_name, place)
order by input.place
