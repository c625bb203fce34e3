-- source.capture.stamps
with recursive target as materialized (
  select t.oid, t.relkind, t.relispartition, t.relname, n.nspname
  from (
    select distinct x.tgrelid
    from pg_trigger x
    join pg_proc p on p.oid = x.tgfoid
    where p.pronamespace = to_regnamespace('cdc_export') and p.proname like 'capture\_%' and x.tgparentid = 0) tracked
  join pg_class t on t.oid = tracked.tgrelid and not t.relispartition
  join pg_namespace n on n.oid = t.relnamespace)

-- include captured.sql

select capture.root as table_oid, capture.relations -> capture.root::text ->> 0 as rows, capture.functions
from capture
where capture.captured
