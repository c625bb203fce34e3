-- store.queue.shorten_orphaned
-- Lets the leases of the jobs whose sessions have ended run out in a second.
-- A worker that still runs has ended its attempt itself by then.
with orphaned as (
  select e.id
  from exports e
  where
    -- include queue/orphaned.sql
  for update skip locked
)
update exports e set lease_expires_at = statement_timestamp() + interval '1 second'
from orphaned
where e.id = orphaned.id
