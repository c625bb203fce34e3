-- source.capture.unlist
-- Notes the tracked tables that have no triggers any more: an earlier `untrack` could not note them, or somebody
-- dropped the triggers. Forgets tracked tables that were dropped or renamed. Somebody may have tracked one meanwhile.
with unlisted as (
  delete from cdc_export.tracked l where (l.schema_name, l.table_name) not in (
    select n.nspname::text, t.relname::text
    from pg_trigger x
    join pg_proc p on p.oid = x.tgfoid
    join pg_class t on t.oid = x.tgrelid
    join pg_namespace n on n.oid = t.relnamespace
    where p.pronamespace = to_regnamespace('cdc_export'))
  returning l.schema_name, l.table_name)
insert into cdc_export.untracked (schema_name, table_name)
select unlisted.schema_name, unlisted.table_name from unlisted
where to_regclass(format('%I.%I', unlisted.schema_name, unlisted.table_name)) is not null
on conflict do nothing
