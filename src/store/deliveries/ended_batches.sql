-- store.deliveries.ended_batches
-- Returns those of some batches of which each member has ended, with the datasets of all members.
-- $1 uuid[]: the batches
select f.id, f.consumer_id, f.batch -> 'members' as datasets, members.status
from exports f
cross join lateral (
  select case
    when bool_or(m.status in ('pending', 'processing') or m.status = 'completed' and m.published_at is null) then null
    when bool_or(m.status = 'failed') then 'failed'
    when bool_or(m.status = 'cancelled') then 'cancelled'
    when bool_or(m.status = 'completed') then 'completed'
    else 'skipped' end as status
  from exports m
  where m.batch_id = f.id) members
where f.id = any ($1) and members.status is not null
