-- store.moments.waiting
-- For each lane: whether the change log has changes that the lane's exports don't, and since when they are committed.
-- That time is null if nobody knows it. If no triggers log the changes of its table, there may be some since the lane's
-- last export.
-- $1 text[]: the consumer of each lane; null: the lanes whose last exports are the oldest
-- $2 text[]: the dataset of each lane, or all datasets
-- $3 bigint: the limit on lanes
with recursive lanes as materialized (
  select w.consumer_id, w.dataset, w.table_oid, w.live_snapshot, w.saved_at
  from watermarks w
  where w.live_snapshot is not null and w.log_lost is distinct from 'all' and w.dataset = any ($2)
    and ($1::text[] is null or (w.consumer_id, w.dataset) in (select * from unnest($1, $2)))
  order by w.saved_at
  limit $3),

-- The tables whose changes triggers log. The second line of a trigger's function has the oid of its table, which is
-- another one after the restore of a dump.
logged as materialized (
  select t.table_oid
  from (select distinct table_oid from lanes) t
  -- `offset 0`, so that each table looks for its triggers, and each trigger for its function.
  cross join lateral (select x.tgfoid, x.tgenabled from pg_trigger x where x.tgrelid = t.table_oid offset 0) x
  cross join lateral (
    select p.pronamespace, p.proname, p.prosrc from pg_proc p where p.oid = x.tgfoid offset 0) p
  where p.pronamespace = to_regnamespace('cdc_export') and p.proname like 'capture\_%'
    and split_part(split_part(p.prosrc, chr(10), 2), ' ', 4) = t.table_oid::text
  group by t.table_oid
  having bool_and(x.tgenabled <> 'D')),

-- About when a process last looked if the log had moved, or earlier. It looks each second. Null: nobody knows, because
-- no process is there, or the role doesn't see when it used its session.
last_look as materialized (
  select max(least(session.looked_at, statement_timestamp() - interval '1 second')) as at
  from cdc_export.process_sessions session
  where session.looked_at <= statement_timestamp())
select lanes.consumer_id, lanes.dataset, logged.table_oid is null or waiting.xids > 0 as has_changes,
  extract(epoch from clock_timestamp()
    - case when logged.table_oid is null then lanes.saved_at else waiting.since end)::float8 as seconds
from lanes
left join logged on logged.table_oid = lanes.table_oid
cross join lateral (
  -- The transactions that began after the lane's position, from the first one on, until no later one can have been
  -- committed earlier.
  with recursive later (xid, since, bound) as (
    select (pg_snapshot_xmax(lanes.live_snapshot)::text::bigint - 1)::text::xid8, null::timestamptz, null::xid8
    union all
    select next.xid, committed.since, least(later.bound, committed.bound)
    from later
    cross join lateral (
      select l.xid
      from cdc_export.change_log l
      where l.table_oid = lanes.table_oid and l.xid > later.xid and l.operation <> 'Q'
      order by l.table_oid, l.xid
      limit 1) next
    -- include moments/committed.sql
    where later.bound is null or next.xid < later.bound)
  select count(*) as xids, min(found.since) as since
  from (
    select later.since from later where later.bound is not null
    union all
    select committed.since
    from pg_snapshot_xip(lanes.live_snapshot) next (xid)
    -- include moments/committed.sql
    where exists (
      select from cdc_export.change_log l
      where l.table_oid = lanes.table_oid and l.xid = next.xid and l.operation <> 'Q')) found) waiting
