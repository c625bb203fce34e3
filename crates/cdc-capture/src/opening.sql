-- source.snapshot.open
-- Exports the snapshot of the transaction, and reads each dataset's position and the guard's verdict. It stays one
-- statement, so that snapshot, positions and verdicts are of one moment.
-- $1 text[]: the datasets' tables
-- $2 text: the consumer; null: an ad-hoc export
-- $3 text[]: the datasets
-- $4 boolean[]: triggers capture the changes
-- $5 text[]: the definition of each dataset
-- $6 jsonb[]: the types of the columns
-- $7 boolean[]: `LaneEvidence::confirms` of each lane
-- $8 boolean[]: `LaneEvidence::contradicts` of each lane
-- $9 jsonb[]: the guard's state of the columns
with exported as materialized (select pg_export_snapshot() as name)

select exported.name, found.*
from exported
cross join unnest($1, $3, $4, $5, $6, $7, $8, $9) with ordinality
  as input (relation, dataset, by_triggers, definition, types, confirms, contradicts, guard_state, place)
cross join lateral (
with recursive target as materialized (
  select t.oid, t.relkind, t.relispartition, t.relname, n.nspname
  from pg_class t
  join pg_namespace n on n.oid = t.relnamespace
  where t.oid = to_regclass(input.relation)),

wanted as materialized (
  select input.by_triggers, input.definition, input.types, input.guard_state),

lanes as materialized (select $2::text as consumer_id, input.dataset, input.confirms, input.contradicts)

-- include captured.sql
-- include guard/verdict.sql

-- Transactions that may yet change tables of this database; the snapshot has those of the whole cluster. Our own
-- sessions change none.
, writers as materialized (
  select
    (count(distinct l.pid)
      + (select count(*) from pg_prepared_xacts p where p.database = current_database()))::int as open_transactions,
    -- A role doesn't see when another role's transactions began.
    case when bool_and(a.xact_start is not null)
      then max(extract(epoch from clock_timestamp() - a.xact_start))::float8 end as oldest_transaction_seconds
  from pg_locks l
  join pg_stat_activity a on a.pid = l.pid
  where l.locktype = 'transactionid' and l.granted and l.mode = 'ExclusiveLock' and a.datname = current_database()
    -- An autovacuum has no role.
    and a.usesysid is not null
    and a.application_name not like 'cdc-export %')

select now.snapshot::text as snapshot, statement_timestamp() as taken_at,
  current_setting('server_encoding') as encoding, now.logged_key, now.captured,
  case when target.relkind = 'r'
    then pg_relation_size(target.oid) / current_setting('block_size')::bigint end as blocks,
  (select sum(p.reltuples) filter (where p.reltuples > 0)
   from relations r
   join pg_class p on p.oid = r.oid and p.relkind <> 'p')::int8 as rows,
  (select jsonb_agg(jsonb_build_array(n.nspname, c.relname) order by c.oid) filter (where c.relkind <> 'p')
   from relations r
   join pg_class c on c.oid = r.oid
   join pg_namespace n on n.oid = c.relnamespace
   having target.relkind = 'p' and bool_and(c.relkind = 'p' or
     -- include relation_locks/reads_alone.sql
   )) as leaves,
  exists (
    select from relations r
    join pg_class part on part.oid = r.oid
    where part.reltoastrelid <> 0 and pg_relation_size(part.reltoastrelid) > 0) as toasted,
  w.version, w.last_exported_at, w.live_snapshot::text, w.deletions_snapshot::text, verdict.continuity,
  coalesce(w.table_oid = target.oid and w.table_columns_hash = now.table_columns_hash
    and w.relfilenode <> now.relfilenode, false) as table_rewritten,
  -- Every export moves the position of live rows, so each export counts what the one before has not counted.
  (select coalesce(sum(l.quiet_deletes), 0)::bigint
   from cdc_export.change_log l
   where l.table_oid = target.oid and l.key is null and (l.xid >= pg_snapshot_xmax(w.live_snapshot)
     or l.xid = any (array(select pg_snapshot_xip(w.live_snapshot))))) as quiet_deletes,
  -- No change was logged since the position. That of deletions is never later than that of live rows.
  -- For each transaction that it had not seen, and for all later ones, the `order by` makes Postgres read one entry of
  -- an index.
  w.deletions_snapshot is not null and not exists (
    select from (
      select pg_snapshot_xip(w.deletions_snapshot)
      union all
      select pg_snapshot_xmax(w.deletions_snapshot)) unseen (xid)
    cross join lateral (
      select l.xid from cdc_export.change_log l
      where l.table_oid = target.oid and l.xid >= unseen.xid
      order by l.xid limit 1) next
    where next.xid = unseen.xid or next.xid >= pg_snapshot_xmax(w.deletions_snapshot)) as is_quiet,
  array(
    select p::oid
    from jsonb_object_keys(now.guard_state -> 'relations') p
    where not w.guard_state -> 'relations' ? p) as arrived,
  writers.open_transactions, writers.oldest_transaction_seconds, target.oid as table_oid, now.relfilenode,
  now.table_columns_hash, now.guard_state || wanted.guard_state as guard_state,
  now.guard_state ->> 'mask_secret' as mask_secret,
  (w.guard_state ->> 'deleted_since')::timestamptz as deleted_since,
  (w.guard_state ->> 'time')::bigint as timed_by,
  coalesce(w.guard_state ->> 'filter' = wanted.guard_state ->> 'filter', false) as knows_filter, now.cluster_id
from target
cross join current_state now
cross join wanted
cross join verdict
cross join writers
left join watermarks w on w.consumer_id = verdict.consumer_id and w.dataset = verdict.dataset
) found
order by input.place
