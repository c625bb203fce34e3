-- store.manifests.batch_members
-- Returns the members of a batch that have files, or had them, in the order of their datasets' names.
-- $1 uuid: the batch
-- $2 uuid: the member with which the batch's other datasets are returned
select e.id, e.dataset, e.number, e.digest, e.status = 'failed' as is_failed,
  e.status = 'completed' and e.published_at is null as is_open,
  case when e.id = $2 then (select f.batch -> 'members' from exports f where f.id = $1) end as datasets
from exports e
where e.batch_id = $1 and e.status <> 'skipped'
order by e.dataset
