-- source.capture.holders
-- Returns the other transactions whose locks on a table, its partitions or its children conflict with a lock.
-- $1 oid: the table
-- $2 text: the mode of that lock, `access exclusive` or `share row exclusive`
with recursive tree (oid) as (
  select $1::oid
  union all
  select i.inhrelid from tree join pg_inherits i on i.inhparent = tree.oid)
select l.virtualtransaction as transaction,
  case when l.pid is null then format('prepared transaction %s', p.gid)
    -- An autovacuum has no role.
    when a.usename is null then format('process %s (autovacuum)', l.pid)
    else format('process %s of role %s (application %s)', l.pid, a.usename, a.application_name)
  end as name,
  -- The relations, if all that the transaction does is to vacuum or to analyze them, or the like.
  case when bool_and(l.mode = 'ShareUpdateExclusiveLock') then array_agg(distinct format('%I.%I', n.nspname, c.relname))
    else '{}' end as vacuumed
from pg_locks l
join pg_class c on c.oid = l.relation
join pg_namespace n on n.oid = c.relnamespace
left join pg_stat_activity a on a.pid = l.pid
-- A prepared transaction has no process. It keeps the lock on its own id.
left join (pg_locks own join pg_prepared_xacts p on p.transaction = own.transactionid)
  on l.pid is null and own.virtualtransaction = l.virtualtransaction
where l.locktype = 'relation' and l.relation in (select tree.oid from tree)
  and l.database = (select d.oid from pg_database d where d.datname = current_database())
  and l.pid is distinct from pg_backend_pid()
  and ($2 = 'access exclusive' or l.mode not in ('AccessShareLock', 'RowShareLock'))
group by l.virtualtransaction, l.pid, p.gid, a.usename, a.application_name
order by l.pid
