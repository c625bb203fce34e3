-- store.due
-- $1 text: the session's new name
-- $2 text[]: the receivers of events
select set_config('application_name', $1, false),
  -- Each `order by` makes Postgres use an index.
  (select j.turn from cdc_export.jobs j
   where j.status = 'pending' order by j.turn, j.created_at limit 1) is not null
  or (select j.lease_expires_at from cdc_export.jobs j
      where j.status = 'processing' order by j.lease_expires_at limit 1) is not null as has_open,
  exists (
    select from cdc_export.deliveries d
    where d.endpoint = any ($2) and d.delivered_at is null and d.run_at > statement_timestamp()
      and d.run_at < 'infinity' and d.rescheduled_at > statement_timestamp()) as has_lapsed,
  (select j.status from cdc_export.jobs j
   where j.status = 'committed' order by j.lease_expires_at limit 1) is not null as has_unpublished,
  array(
    select d.id from cdc_export.destinations d
    where d.id not in (
      select session.destination_id from
        -- include destinations/sessions.sql
      where session.used_at between clock_timestamp() - interval '15 seconds' and clock_timestamp())) as unused,
  (select
     -- include moments/moved.sql
   from (select 1) one
   left join
     -- include moments/latest.sql
   on true) as log_has_moved, log.sequence as log_sequence, statement_timestamp() as looked_at
from (
    select coalesce(pg_sequence_last_value(pg_get_serial_sequence('cdc_export.change_log', 'sequence')::regclass), 0)
      as sequence) log
