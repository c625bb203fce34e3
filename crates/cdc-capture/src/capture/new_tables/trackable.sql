-- source.capture.trackable
-- Returns the place of each table that nobody has tracked or untracked and that no other session locks for a write,
-- with a text that another definition of the table changes. Returns none while a dump may be loaded.
-- $1 text[]: the names of tables
with recursive tree (place, root, oid) as (
  select named.place, named.oid, named.oid
  from (
    select named.place, to_regclass(named.name)::oid as oid
    from unnest($1) with ordinality named (name, place)) named
  where named.oid is not null
  union
  select tree.place, tree.root, i.inhrelid from tree join pg_inherits i on i.inhparent = tree.oid),
busy as (
  -- A prepared transaction has no process id.
  select tree.place
  from tree
  join pg_locks l on l.locktype = 'relation' and l.relation = tree.oid
  where l.mode <> 'AccessShareLock' and l.pid is distinct from pg_backend_pid()
    and l.database = (select d.oid from pg_database d where d.datname = current_database()))
select tree.place, md5(string_agg(
  format('%s %s %s %s %s', c.oid, c.xmin, c.relfilenode, indexes.n, triggers.n), ',' order by c.oid))
from tree
join pg_class c on c.oid = tree.oid
join pg_class root on root.oid = tree.root
join pg_namespace n on n.oid = root.relnamespace
cross join lateral (select count(*) as n from pg_index i where i.indrelid = c.oid) indexes
cross join lateral (
  select count(*) as n, count(*) filter (where p.pronamespace = to_regnamespace('cdc_export')) as own
  from pg_trigger x
  join pg_proc p on p.oid = x.tgfoid
  where x.tgrelid = c.oid) triggers
where tree.place not in (select busy.place from busy)
  and not exists (
    select from cdc_export.tracked k
    where k.schema_name = n.nspname::text collate "default" and k.table_name = root.relname::text collate "default")
  and not exists (
    select from cdc_export.untracked k
    where k.schema_name = n.nspname::text collate "default" and k.table_name = root.relname::text collate "default")
  -- A dump makes the functions of the triggers first, and the triggers last.
  and (select count(*) from pg_proc p
       where p.pronamespace = to_regnamespace('cdc_export') and p.proname like 'capture\_%'
         and p.oid not in (select x.tgfoid from pg_trigger x)) = 0
group by tree.place
having sum(triggers.own) = 0
