-- source.capture.triggers
-- $1 oid: the table
-- $2 text: the set of functions whose triggers are left out; null: none
-- Postgres's function for the partitions would lock each of them.
with recursive tree (oid) as (
  select $1::oid
  union all
  select i.inhrelid
  from tree
  join pg_inherits i on i.inhparent = tree.oid
  join pg_class c on c.oid = i.inhrelid and c.relispartition)
select p.oid, format('%I on %I.%I', x.tgname, n.nspname, c.relname)
from pg_trigger x
-- `offset 0`, so that each trigger looks for its function, as in `captured.sql`.
cross join lateral (
  select p.oid, p.proname, p.pronamespace from pg_proc p where p.oid = x.tgfoid offset 0) p
join pg_class c on c.oid = x.tgrelid
join pg_namespace n on n.oid = c.relnamespace
where p.pronamespace = to_regnamespace('cdc_export') and p.proname like 'capture\_%'
  and left(p.proname::text, -1) is distinct from $2
  and x.tgrelid in (select tree.oid from tree)
  -- A trigger that Postgres cloned to a partition is dropped with the root's trigger.
  and x.tgparentid = 0
