-- source.lag.list
-- $1 text: the dataset
-- $2 text[]: the consumers
-- $3 text: the dataset's table
-- $4 boolean: triggers capture the changes
-- $5 text: the definition of the dataset
-- $6 jsonb: the types of the columns
-- $7 bigint: the number of changes that are read
-- $8 bigint: the number of rows that are counted
-- $9 uuid[]: the job that the marker of each consumer's lane names; null: there is no marker
-- $10 text[]: the SHA-256 that each marker has of that job
-- $11 jsonb: the guard's state of the columns
-- $12 boolean: the table has a column `updated_at`
--
-- Counts the rows that wait for each consumer, by one of four rules. A consumer with a position has the changes that
-- the log has since then. A consumer with a watermark alone has the rows after it. If somebody set the watermark back,
-- both count. A consumer with neither has all rows.
with recursive target as materialized (
  select t.oid, t.relkind, t.relispartition, t.relname, n.nspname
  from pg_class t
  join pg_namespace n on n.oid = t.relnamespace
  where t.oid = to_regclass($3)),

wanted as materialized (
  select $4::boolean as by_triggers, $5::text as definition, $6::jsonb as types, $11::jsonb as guard_state),

lanes as materialized (
  select consumer_id, $1 as dataset, marker_job, marker_sha256, false as after_is_valid
  from unnest($2::text[], $9::uuid[], $10::text[]) as lane (consumer_id, marker_job, marker_sha256))

-- include captured.sql
-- include guard/verdict.sql

, positions as materialized (
  select verdict.consumer_id, w.last_exported_at, w.live_snapshot,
    pg_snapshot_xmax(w.live_snapshot)::text::bigint as next, verdict.continuity,
    -- A time that somebody set in place of ours rules alone.
    $4 and w.live_snapshot is not null
      and not coalesce(w.last_exported_at > w.saved_last_exported_at
        or w.saved_last_exported_at is null and w.last_exported_at is not null, false) as by_log,
    coalesce(w.last_exported_at < w.saved_last_exported_at and $12
      or w.last_exported_at is null and w.saved_last_exported_at is not null, false) as is_set_back
  from verdict
  left join watermarks w on w.consumer_id = verdict.consumer_id and w.dataset = verdict.dataset),

-- The newest entries of the log, which all consumers share. A snapshot has not seen what began after it, nor the
-- transactions that were in progress: two ranges of the log, each read from its near end.
recent as materialized (
  select key, xid::text::bigint as xid
  from (
    select key, xid from cdc_export.change_log
    where table_oid = (select oid from target)
    order by table_oid desc, xid desc
    limit case when exists (select from positions where by_log) then $7 else 0 end) newest),

-- The oldest entry that was read, if there may be older ones.
reach as (select min(xid) as oldest from recent having count(*) >= $7),

keys as materialized (select key, max(xid) as xid from recent where key is not null group by key),

-- The keys that were logged by transactions that began after each position.
later as (
  select consumer_id, rows
  from (
    select consumer_id,
      count(*) filter (where consumer_id is null)
        over (order by xid desc, consumer_id nulls first rows unbounded preceding) as rows
    from (
      select xid, null as consumer_id from keys
      union all
      select next, consumer_id from positions where by_log) marks) ranked
  where consumer_id is not null),

-- The number of entries that are read for one consumer alone, of those that are read for all.
share as materialized (select greatest($7 / (select count(*) from positions), 100) as entries),

-- The keys that were logged by transactions that were in progress at each position.
in_progress as (
  select p.consumer_id, count(distinct e.key) filter (where k.xid is null or k.xid < p.next) as rows,
    count(*) as entries
  from positions p
  cross join lateral (
    select l.key from cdc_export.change_log l
    where l.table_oid = (select oid from target)
      and l.xid = any (array(select pg_snapshot_xip(p.live_snapshot))) and l.key is not null
    limit (select entries from share)) e
  left join keys k on k.key = e.key
  where p.by_log
  group by p.consumer_id)

-- include behind
-- include set_back
-- include everything

select p.consumer_id, p.last_exported_at, p.continuity, now.captured, now.logged_key,
  case
    when p.last_exported_at is null and (not p.by_log or p.is_set_back) then everything.rows
    when p.by_log and p.is_set_back then set_back.rows
    when p.by_log then later.rows + coalesce(in_progress.rows, 0)
    else coalesce(behind.rows, 0)
  end as rows_waiting,
  case
    when p.last_exported_at is null and (not p.by_log or p.is_set_back) then false
    when p.by_log and p.is_set_back then set_back.is_capped
    when p.by_log then coalesce(p.next <= reach.oldest, false)
      or coalesce(in_progress.entries >= (select entries from share), false)
    else coalesce(behind.is_capped, false)
  end as is_capped,
  behind.since as waiting_since
from positions p
cross join current_state now
cross join everything
left join reach on true
left join later using (consumer_id)
left join in_progress using (consumer_id)
left join behind using (consumer_id)
left join set_back using (consumer_id)
order by p.consumer_id collate "C"
