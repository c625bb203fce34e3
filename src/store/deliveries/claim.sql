-- store.deliveries.claim
-- $1 text: the receiver
-- $2 bigint: the limit on deliveries
-- $3 float8: the length of the lease in seconds
-- $4 boolean: true to claim only deliveries that were requested again and had no attempt since
with due as materialized (
  select id
  from cdc_export.deliveries
  where endpoint = $1 and delivered_at is null and run_at <= statement_timestamp() and (manually_requested or not $4)
  order by run_at
  limit $2
  for update skip locked
)
update cdc_export.deliveries d
set rescheduled_at = clock_timestamp(), run_at = clock_timestamp() + make_interval(secs => $3)
from due
where d.id = due.id
returning
  -- include deliveries/columns.sql
