-- store.audit.record
-- Records a download, a removal or a refusal. Equal requests of one key from one address within a minute are one row
-- with a count. Once a key has
-- 100 rows of refusals in a minute, further refusals are recorded without names, so that no key can fill the log.
-- $1 jsonb: the sender: key, remote, requestId
-- $2 text: the action
-- $3 text: the consumer; null for that of the job
-- $4 text: the dataset; null for that of the job
-- $5 uuid: the job
-- $6 integer: the number of the file
-- $7 text: the outcome
with recent as materialized (
  select l.id, l.action, l.consumer_id, l.dataset, l.job_id, l.part, l.outcome, l.remote
  from cdc_export.audit_log l
  where coalesce(l.key, '') = coalesce($1 ->> 'key', '') and l.at > statement_timestamp() - interval '1 minute'
),
entry as (
  select case when not named.is_cut then coalesce($3, e.consumer_id) end as consumer_id,
    case when not named.is_cut then coalesce($4, e.dataset) end as dataset,
    case when not named.is_cut then $5::uuid end as job_id
  from (select $7 <> 'done' and (select count(*) from recent where outcome <> 'done') >= 100) named (is_cut)
  left join exports e on e.id = $5
),
counted as (
  update cdc_export.audit_log l set count = l.count + 1
  where l.id = (
    select max(r.id)
    from recent r
    cross join entry
    where r.action = $2 and r.outcome = $7
      and (r.consumer_id, r.dataset, r.job_id, r.part, r.remote)
        is not distinct from (entry.consumer_id, entry.dataset, entry.job_id, $6, $1 ->> 'remote'))
  returning l.id
)
insert into cdc_export.audit_log (request_id, key, remote, action, consumer_id, dataset, job_id, part, outcome)
select $1 ->> 'requestId', $1 ->> 'key', $1 ->> 'remote', $2, entry.consumer_id, entry.dataset, entry.job_id, $6, $7
from entry
where not exists (select from counted)
