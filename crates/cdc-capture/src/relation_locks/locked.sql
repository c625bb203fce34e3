-- source.relation_locks.locked
-- Returns a relation on which another session holds or awaits an ACCESS EXCLUSIVE lock: one of these, a partition, or
-- what a view reads.
-- $1 text[]: relations
-- include relation_locks/beneath.sql
select format('%I.%I', n.nspname, c.relname) as sql,
  c.relkind in ('r', 'p') and has_table_privilege(c.oid, 'select') and has_schema_privilege(n.oid, 'usage')
    as can_wait,
  case when c.oid not in (select input.oid from input where input.oid is not null)
    then format('%s.%s', n.nspname, c.relname) end as beneath
from beneath b
join pg_class c on c.oid = b.oid
join pg_namespace n on n.oid = c.relnamespace
join pg_locks l on l.locktype = 'relation' and l.relation = c.oid
  and l.database = (select d.oid from pg_database d where d.datname = current_database())
where l.mode = 'AccessExclusiveLock'
order by l.granted desc
limit 1
