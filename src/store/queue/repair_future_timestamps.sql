-- store.queue.repair_future_timestamps
-- Sets back the times that lie further in the future than the service ever sets them. The clock was set back since.
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
schedules as (
  -- For up to an hour, a schedule waits for the clock, so that no slot is used twice.
  update cdc_export.schedules set slot = clock_timestamp() where slot > clock_timestamp() + interval '1 hour'
)
-- Each delivery waits for its whole pause again.
update cdc_export.deliveries
set rescheduled_at = clock_timestamp(), run_at = clock_timestamp() + (run_at - rescheduled_at)
where delivered_at is null and run_at < 'infinity' and rescheduled_at > clock_timestamp()
