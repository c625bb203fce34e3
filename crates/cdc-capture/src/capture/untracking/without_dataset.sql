-- source.capture.without_dataset
-- $1 text[]: the schemas of the datasets' tables; null: none is named
-- $2 text[]: their names
with wanted as materialized (
  -- Looking a name up in a schema that the role may not use is an error, so only names without a schema are looked up.
  select cdc_export.table_of_role(quote_ident(named.table_name))::oid as oid
  from unnest((select $1), (select $2)) as named (schema_name, table_name)
  where named.schema_name is null
  union all
  select t.oid
  from unnest((select $1), (select $2)) as named (schema_name, table_name)
  join pg_namespace n on n.nspname = named.schema_name
  join pg_class t on t.relnamespace = n.oid and t.relname = named.table_name),
logged as materialized (
  select distinct x.tgrelid as oid
  from pg_trigger x
  -- `offset 0`, so that each trigger looks for its function, as in `captured.sql`.
  cross join lateral (
    select p.proname, p.pronamespace, p.prosrc from pg_proc p where p.oid = x.tgfoid offset 0) p
  -- A match without captured texts takes Postgres a tenth of the time of one with them.
  cross join lateral (
    select split_part(line, ' ', 4)::oid as root
    from split_part(p.prosrc, chr(10), 2) line
    where line ~ '^-- cdc-export \d+ \d+ '
    offset 0) head
  -- Only a table's own triggers count: a detached partition keeps its root's trigger for TRUNCATE, which logs nothing.
  where p.pronamespace = to_regnamespace('cdc_export') and p.proname like 'capture\_%'
    and head.root = x.tgrelid)
select n.nspname::text, t.relname::text
from logged
join pg_class t on t.oid = logged.oid
join pg_namespace n on n.oid = t.relnamespace
where not t.relispartition and logged.oid not in (select wanted.oid from wanted where wanted.oid is not null)
order by 1, 2
