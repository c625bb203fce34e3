-- source.capture.with_triggers
select distinct n.nspname::text, t.relname::text
from pg_trigger x
-- `offset 0`, so that each trigger looks for its function, as in `captured.sql`.
cross join lateral (select p.proname, p.pronamespace from pg_proc p where p.oid = x.tgfoid offset 0) p
join pg_class t on t.oid = coalesce(pg_partition_root(x.tgrelid), x.tgrelid)
join pg_namespace n on n.oid = t.relnamespace
where p.pronamespace = to_regnamespace('cdc_export') and p.proname like 'capture\_%'
order by 1, 2
