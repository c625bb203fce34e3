-- store.datasets.record
-- Records that a process has these datasets. Writes only rows that are new, of another table, or an hour old.
-- $1 text[]: names
-- $2 text[]: for each, the schema of its table
-- $3 text[]: for each, the name of its table
insert into cdc_export.datasets (name, schema_name, table_name, seen_at)
select dataset.name, dataset.schema_name, dataset.table_name, clock_timestamp()
from unnest($1, $2, $3) dataset (name, schema_name, table_name)
where not exists (
  select from cdc_export.datasets d
  where (d.name, d.schema_name, d.table_name) = (dataset.name, dataset.schema_name, dataset.table_name)
    and d.seen_at between clock_timestamp() - interval '1 hour' and clock_timestamp())
order by dataset.name
on conflict (name) do update
set schema_name = excluded.schema_name, table_name = excluded.table_name, seen_at = excluded.seen_at
