-- store.due
-- $1 text: the session's new name
-- $2 text[]: the receivers of events
select set_config('application_name', $1, false), has_open, has_unpublished, unused, log_has_moved, log_sequence,
  looked_at, exists (
    select from cdc_export.deliveries d
    where d.endpoint = any ($2) and d.delivered_at is null and d.run_at > looked_at and d.run_at < 'infinity'
      and d.rescheduled_at > looked_at) as has_lapsed
from cdc_export.work
