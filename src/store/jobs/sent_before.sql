-- store.jobs.sent_before
-- Returns the job that a request with this idempotency key created.
-- $1 text: the consumer; the empty one has the ad-hoc exports
-- $2 text: the key
select
  -- include job_columns.sql
from exports e
where coalesce(e.consumer_id, '') = $1 and e.idempotency_key = $2
