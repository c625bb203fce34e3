-- source.lag.list
-- $1 text: the dataset
-- $2 text[]: the consumers
-- $3 text: the dataset's table
-- $4 boolean: triggers capture the changes
-- $5 text: the definition of the dataset
-- $6 jsonb: the types of the columns
-- $7 boolean[]: `LaneEvidence::confirms` of each consumer's lane
-- $8 boolean[]: `LaneEvidence::contradicts` of each lane
-- $9 jsonb: the guard's state of the columns
--
-- Returns the guard's verdict on each consumer's position. A consumer without a position in the change log lacks the
-- rows after its watermark: `since` is the earliest time of one. Without a watermark, it lacks all rows. `is_none` is
-- true if it lacks none.
with recursive target as materialized (
  select t.oid, t.relkind, t.relispartition, t.relname, n.nspname
  from pg_class t
  join pg_namespace n on n.oid = t.relnamespace
  where t.oid = to_regclass($3)),

wanted as materialized (
  select $4::boolean as by_triggers, $5::text as definition, $6::jsonb as types, $9::jsonb as guard_state),

lanes as materialized (
  select consumer_id, $1 as dataset, confirms, contradicts
  from unnest($2::text[], $7::boolean[], $8::boolean[]) as lane (consumer_id, confirms, contradicts))

-- include captured.sql
-- include guard/verdict.sql

select verdict.consumer_id, w.last_exported_at, verdict.continuity, now.captured, now.logged_key,
  waiting.since, waiting.is_none
from verdict
cross join current_state now
left join watermarks w on w.consumer_id = verdict.consumer_id and w.dataset = verdict.dataset
cross join lateral (select $4 and w.live_snapshot is not null as by_log) lane
cross join lateral (
  -- include waiting
) waiting
order by verdict.consumer_id collate "C"
