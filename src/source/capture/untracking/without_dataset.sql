-- source.capture.without_dataset
-- $1 text[]: the schemas of the datasets' tables; null: none is named
-- $2 text[]: their names
with wanted as materialized (
  -- Looking a name up in a schema that the role may not use is an error, so only names without a schema are looked up.
  select schema_name, table_name,
    case when schema_name is null then cdc_export.table_of_role(quote_ident(table_name))::oid end as oid
  from unnest($1::text[], $2::text[]) as named (schema_name, table_name)),
logged as materialized (
  select distinct x.tgrelid as oid
  from pg_trigger x
  join pg_proc p on p.oid = x.tgfoid
  cross join lateral regexp_match(split_part(p.prosrc, chr(10), 2), '^-- cdc-export \d+ (\d+) ') head
  -- Only a table's own triggers count: a detached partition keeps its root's trigger for TRUNCATE, which logs nothing.
  where p.pronamespace = to_regnamespace('cdc_export') and p.proname like 'capture\_%'
    and head[1]::oid = x.tgrelid)
select n.nspname::text, t.relname::text
from logged join pg_class t on t.oid = logged.oid join pg_namespace n on n.oid = t.relnamespace
where not t.relispartition and not exists (
  select from wanted
  where wanted.oid = t.oid or (wanted.schema_name, wanted.table_name) = (n.nspname::text, t.relname::text))
order by 1, 2
