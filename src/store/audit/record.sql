-- store.audit.record
-- Records a download or a refusal. Equal requests of one key within a minute are one row with a count.
-- $1 jsonb: the sender: key, remote, requestId
-- $2 text: the action
-- $3 text: the consumer; null for that of the job
-- $4 text: the dataset; null for that of the job
-- $5 uuid: the job
-- $6 integer: the number of the file
-- $7 text: the outcome
with entry as (
  select $1 ->> 'key' as key, coalesce($3, e.consumer_id) as consumer_id, coalesce($4, e.dataset) as dataset
  from (select) request
  left join exports e on e.id = $5
),
latest as (
  select l.id
  from cdc_export.audit_log l
  cross join entry
  where coalesce(l.key, '') = coalesce(entry.key, '') and l.at > clock_timestamp() - interval '1 minute'
    and l.action = $2 and l.outcome = $7
    and (l.consumer_id, l.dataset, l.job_id, l.part)
      is not distinct from (entry.consumer_id, entry.dataset, $5, $6)
  order by l.id desc
  limit 1
),
counted as (
  update cdc_export.audit_log l set count = l.count + 1 from latest where l.id = latest.id
  returning l.id
)
insert into cdc_export.audit_log (request_id, key, remote, action, consumer_id, dataset, job_id, part, outcome)
select $1 ->> 'requestId', entry.key, $1 ->> 'remote', $2, entry.consumer_id, entry.dataset, $5, $6, $7
from entry
where not exists (select from counted)
