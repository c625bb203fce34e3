-- store.queue.raise_lanes
-- Moves the open jobs of lanes behind the last export that the destination has of each: a restored database doesn't
-- know that export. The lanes' rows must be locked.
-- $1 uuid[]: jobs of one attempt, one of each lane
-- $2 bigint[]: the places of those exports in their lanes
-- $3 uuid: the lease token of the attempt
with lane as (
  -- The first open job comes just behind what was handed out, and behind all places of now: no open job may get the
  -- place of another one meanwhile.
  select l.consumer_id, l.dataset, greatest(its.marked, l.last_sequence) + 1 - (
    select min(o.lane_sequence)
    from exports o
    where o.consumer_id = l.consumer_id and o.dataset = l.dataset and o.status in ('pending', 'processing')) as shift
  from unnest($1, $2) as its (job, marked)
  join exports e on e.id = its.job and e.lease_token = $3
  join cdc_export.lanes l on l.consumer_id = e.consumer_id and l.dataset = e.dataset
),
raised as (
  update cdc_export.lanes l
  set last_sequence = l.last_sequence + lane.shift
  from lane
  where l.consumer_id = lane.consumer_id and l.dataset = lane.dataset
)
update exports e
set lane_sequence = e.lane_sequence + lane.shift
from lane
where e.consumer_id = lane.consumer_id and e.dataset = lane.dataset and e.status in ('pending', 'processing')
