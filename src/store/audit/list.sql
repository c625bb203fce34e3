-- store.audit.list
-- Returns rows of the audit log, newest first. A parameter that is null does not restrict them.
-- $1 text: the key
-- $2 text: the consumer
-- $3 text: the dataset
-- $4 text: the action
-- $5 timestamptz: the first time
-- $6 timestamptz: the time that is past the last one
-- $7 bigint: only rows with a smaller number
-- $8 bigint: the limit on rows
select id, at, request_id, key, remote, action, consumer_id, dataset, job_id, outcome, count
from cdc_export.audit_log
where ($1::text is null or coalesce(key, '') = $1)
  and ($2::text is null or consumer_id = $2)
  and ($3::text is null or dataset = $3)
  and ($4::text is null or action = $4)
  and ($5::timestamptz is null or at >= $5)
  and ($6::timestamptz is null or at < $6)
  and ($7::bigint is null or id < $7)
order by id desc
limit $8
