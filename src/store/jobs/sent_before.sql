-- store.jobs.sent_before
-- Returns the job that a request with this idempotency key created.
-- $1 text: the consumer, or the API key of an ad-hoc export
-- $2 text: the key
select
  -- include job_columns.sql
from exports e
where coalesce(e.consumer_id, ':' || e.key_prefix, '') = $1 and e.idempotency_key = $2
