-- store.moments.waiting
-- For each lane: whether the change log has changes that the lane's exports don't, and since when they are committed.
-- That time is null if nobody knows it.
-- $1 text[]: the consumer of each lane; null: the lanes whose last exports are the oldest
-- $2 text[]: the dataset of each lane, or all datasets
-- $3 bigint: the limit on lanes
with recursive lanes as materialized (
  select w.consumer_id, w.dataset, w.table_oid, w.live_snapshot
  from watermarks w
  where w.live_snapshot is not null and w.log_lost is distinct from 'all' and w.dataset = any ($2)
    and ($1::text[] is null or (w.consumer_id, w.dataset) in (select * from unnest($1, $2)))
  order by w.saved_at
  limit $3),

-- About when a process last looked if the log had moved, or earlier. It looks each second. Null: nobody knows, because
-- no process is there, or the role doesn't see when it used its session.
last_look as materialized (
  select max(least(session.looked_at, statement_timestamp() - interval '1 second')) as at
  from
    -- include destinations/sessions.sql
  where session.looked_at <= statement_timestamp())
select lanes.consumer_id, lanes.dataset, waiting.xids > 0 as has_changes,
  extract(epoch from clock_timestamp() - waiting.since)::float8 as seconds
from lanes
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
