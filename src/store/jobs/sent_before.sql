-- store.jobs.sent_before
-- $1 text: the consumer, or the API key of an ad-hoc export
-- $2 text: the key
select
  -- include job_columns.sql
from cdc_export.jobs j
join cdc_export.exports e on e.job = j.id
where coalesce(j.consumer_id, ':' || j.key_prefix, '') = $1 and j.idempotency_key = $2
order by e.job, e.dataset
