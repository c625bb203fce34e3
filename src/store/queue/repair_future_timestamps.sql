-- store.queue.repair_future_timestamps
-- Sets back the times that lie further in the future than the service ever sets them. The clock was set back since.
-- Leaves out what another process has locked: a stopped one would hold up all who take over jobs.
-- $1 float8: the length of a lease in seconds
-- $2 float8[]: the longest pauses in seconds, after one attempt, two attempts and so on
with late as (
  select id from cdc_export.jobs
  where status = 'pending'
      -- A job without an attempt has no pause.
      and run_at > clock_timestamp() + make_interval(secs => greatest(
        coalesce(($2)[least(attempt, cardinality($2))], 0), case when gave_way > 0 then 900 else 0 end))
    -- Allows four leases, so that a worker with a longer lease has time to renew it.
    or status = 'processing' and lease_expires_at > clock_timestamp() + 4 * make_interval(secs => $1)
  for update skip locked
),
jobs as (
  update cdc_export.jobs j
  set run_at = clock_timestamp(),
      lease_expires_at = case j.status when 'processing' then clock_timestamp() + 4 * make_interval(secs => $1) end
  from late
  where j.id = late.id
),
late_deliveries as (
  select id from cdc_export.deliveries
  where delivered_at is null and run_at < 'infinity' and rescheduled_at > clock_timestamp()
  for update skip locked
)
-- Each delivery waits for its whole pause again.
update cdc_export.deliveries d
set rescheduled_at = clock_timestamp(), run_at = clock_timestamp() + (d.run_at - d.rescheduled_at)
from late_deliveries late
where d.id = late.id
