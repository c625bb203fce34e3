-- store.deliveries.redeliver
-- Makes a delivery due now, in any status. The new `run_at` ends the claim of a running attempt.
-- $1 uuid: the delivery
update cdc_export.deliveries d
set attempt = 0, manually_requested = true, rescheduled_at = clock_timestamp(), run_at = clock_timestamp(),
    delivered_at = null, dead_at = null
where d.id = $1
returning
  -- include deliveries/columns.sql
