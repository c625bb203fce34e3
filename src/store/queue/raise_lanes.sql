-- store.queue.raise_lanes
-- Moves the open exports of lanes behind the last export that the destination has of each: a restored database doesn't
-- know that export. The lanes' rows must be locked.
-- $1 uuid: the job of an attempt
-- $2 text[]: the datasets of some of its lanes
-- $3 bigint[]: the places of those exports in their lanes
-- $4 uuid: the lease token of the attempt
with lane as (
  -- The first open export comes just behind what was handed out, and behind all places of now: no open export may get
  -- the place of another one meanwhile.
  select l.consumer_id, l.dataset, greatest(input.marked, l.last_sequence) + 1 - (
    select min(o.lane_sequence)
    from cdc_export.exports o
    where o.consumer_id = l.consumer_id and o.dataset = l.dataset and o.status = 'open') as shift
  from cdc_export.jobs j
  cross join unnest($2, $3) as input (dataset, marked)
  join cdc_export.lanes l on l.consumer_id = j.consumer_id and l.dataset = input.dataset
  where j.id = $1 and j.lease_token = $4
),
raised as (
  update cdc_export.lanes l
  set last_sequence = l.last_sequence + lane.shift
  from lane
  where l.consumer_id = lane.consumer_id and l.dataset = lane.dataset
)
update cdc_export.exports e
set lane_sequence = e.lane_sequence + lane.shift
from lane
where e.consumer_id = lane.consumer_id and e.dataset = lane.dataset and e.status = 'open'
