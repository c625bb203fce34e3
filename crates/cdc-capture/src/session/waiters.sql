-- source.session.waiters
-- Returns the sessions that wait for a lock which an ACCESS SHARE lock of these sessions prevents, with the relation.
-- $1 integer[]: the process ids of the sessions that export
with relation_locks as materialized (
  select l.pid, l.relation, l.mode, l.granted
  from pg_locks l
  where l.locktype = 'relation'
    and l.database = (select d.oid from pg_database d where d.datname = current_database()))
select distinct waiter.pid, waiter.relation
from relation_locks own
join relation_locks waiter using (relation)
where own.pid = any ($1) and own.granted and waiter.mode = 'AccessExclusiveLock' and not waiter.granted
