-- store.datasets.record
-- Records that a process has these datasets. Writes only rows that are new, of another table, or some minutes old.
-- $1 text[]: names
-- $2 text[]: for each, the schema of its table
-- $3 text[]: for each, the name of its table
insert into cdc_export.datasets as d (name, schema_name, table_name, seen_at)
select its.name, its.schema_name, its.table_name, clock_timestamp()
from unnest($1, $2, $3) its (name, schema_name, table_name)
order by its.name
on conflict (name) do update
set schema_name = excluded.schema_name, table_name = excluded.table_name, seen_at = excluded.seen_at
where (d.schema_name, d.table_name) <> (excluded.schema_name, excluded.table_name)
  or d.seen_at not between excluded.seen_at - interval '3 minutes' and excluded.seen_at
