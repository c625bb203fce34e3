-- store.queue.shorten_orphaned
-- A worker that still runs has ended its attempt itself by then.
with orphaned as (
  select j.id
  from cdc_export.jobs j
  where
    -- include queue/orphaned.sql
  for update skip locked
)
update cdc_export.jobs j set lease_expires_at = statement_timestamp() + interval '1 second'
from orphaned
where j.id = orphaned.id
