-- store.retention.batch_manifests_past
-- Returns the manifests of the batches whose exports have no manifests any more but those of some jobs.
-- $1 uuid[]: the jobs
select e.id, e.batch_id as batch, e.consumer_id, e.batch_manifest as text
from (select distinct m.batch_id as id from exports m where m.id = any ($1) and m.batch_id is not null) its
join exports e on e.batch_id = its.id and e.batch_manifest is not null
where not exists (
  select from exports m
  where m.batch_id = its.id and m.number is not null and m.manifest is not null and m.id <> all ($1))
