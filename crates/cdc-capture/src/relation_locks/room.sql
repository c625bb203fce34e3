-- source.relation_locks.room
-- Returns the number of locks of these relations and their partitions, the number that a read of one relation takes
-- beside them, and the number of places that are surely free in the server's lock table. A read locks the indexes, too,
-- and takes either all partitions at once or one after the other.
-- $1 text[]: relations
-- $2 boolean[]: the partitions of the relation are read one after the other, if the role can do that
-- include relation_locks/beneath.sql
, read as (
  select case when bool_or(one_by_one.oid is not null) and bool_and(c.relkind = 'p' or coalesce(alone.is_so, false))
    then max(1 + indexes.n) else sum(1 + indexes.n) end as locks
  from beneath b
  join pg_class c on c.oid = b.oid
  cross join lateral (select count(*) as n from pg_index i where i.indrelid = b.oid) indexes
  cross join lateral (
    select
      -- include relation_locks/reads_alone.sql
      as is_so) alone
  left join (
    select distinct to_regclass(listed.name)::oid as oid
    from unnest($1, $2) listed (name, is_one_by_one)
    where listed.is_one_by_one) one_by_one on one_by_one.oid = b.root
  group by b.root)
select (select count(distinct b.oid) from beneath b) as relations,
  coalesce((select max(read.locks)::bigint from read), 0) as of_read,
  -- Postgres allots memory for so many locks (NLOCKENTS in lock.c), and makes half of their entries at its start. Once
  -- many sessions have held the same locks, entries of the holders have taken the rest of the memory until the server
  -- ends. So only half is sure. The number of autovacuum workers has a setting of its own since 18.
  setting.per_transaction * (
    setting.connections + setting.prepared + setting.autovacuums + setting.workers + setting.senders + 1) / 2
  - (select count(*) from pg_locks l where not l.fastpath) as free
from (
  select current_setting('max_locks_per_transaction')::bigint as per_transaction,
    current_setting('max_connections')::bigint as connections,
    current_setting('max_prepared_transactions')::bigint as prepared,
    coalesce(current_setting('autovacuum_worker_slots', true),
      current_setting('autovacuum_max_workers'))::bigint as autovacuums,
    current_setting('max_worker_processes')::bigint as workers,
    current_setting('max_wal_senders')::bigint as senders) setting
