-- store.queue.repair_future_timestamps
-- Repairs times that lie further in the future than the service ever sets them. The clock was set back since.
-- $1 float8: the length of a lease in seconds
-- $2 float8[]: the longest pauses in seconds, after one attempt, two attempts and so on
with ready as (
  -- Finds pending jobs. A job without an attempt has no pause. The first comparison lets Postgres use an index.
  select id from cdc_export.jobs
  where status = 'pending' and run_at > clock_timestamp()
    and run_at > clock_timestamp() + make_interval(secs => greatest(
      coalesce(($2)[least(attempt, cardinality($2))], 0), case when gave_way > 0 then 900 else 0 end))
  for update skip locked
),
leased as (
  -- Allows four leases, so that a worker with a longer lease has time to renew it.
  select id from cdc_export.jobs
  where status = 'processing' and lease_expires_at > clock_timestamp() + 4 * make_interval(secs => $1)
  for update skip locked
),
made_ready as (
  update cdc_export.jobs j set run_at = clock_timestamp() from ready where j.id = ready.id
)
update cdc_export.jobs j set lease_expires_at = clock_timestamp() + 4 * make_interval(secs => $1)
from leased
where j.id = leased.id
