-- source.capture.vacuumed
-- $1 oid: a table with partitions or children; those of them that somebody vacuums or analyzes, as SQL
with recursive tree (oid) as (
  select $1::oid
  union all
  select i.inhrelid from tree join pg_inherits i on i.inhparent = tree.oid)
select distinct format('%I.%I', n.nspname, c.relname)
from pg_locks l
join pg_class c on c.oid = l.relation
join pg_namespace n on n.oid = c.relnamespace
where l.locktype = 'relation' and l.mode = 'ShareUpdateExclusiveLock' and l.granted
  and l.database = (select d.oid from pg_database d where d.datname = current_database())
  and l.relation in (select tree.oid from tree)
