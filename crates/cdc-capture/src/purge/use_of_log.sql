-- source.purge.use_of_log
-- Returns the bytes of the change log that the positions of lanes hold, and the number at which their consumers are
-- given up, if the other tables hold what they hold now.
-- $1 bigint: the bytes of the log that all positions may hold
-- $2 text[]: the consumers
-- $3 text[]: for each, the dataset
with lanes as materialized (
  select w.consumer_id, w.dataset, w.table_oid, coalesce(w.deletions_snapshot, w.live_snapshot)::text as snapshot
  from unnest($2, $3) lane (consumer_id, dataset)
  join watermarks w using (consumer_id, dataset)
  where coalesce(w.deletions_snapshot, w.live_snapshot) is not null),
marks as materialized (
  select table_oid, snapshot from lanes
  union
  -- include purge/furthest.sql
),
-- include purge/held.sql
select l.consumer_id, l.dataset, unseen.bytes,
  greatest($1 - others.bytes, others.largest)::bigint as max_bytes
from lanes l
join unseen using (table_oid, snapshot)
cross join lateral (
  select coalesce(sum(held.bytes), 0) as bytes, coalesce(max(held.bytes), 0) as largest
  from held where held.table_oid <> l.table_oid) others
