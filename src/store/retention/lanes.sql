-- store.retention.lanes
-- Returns the lanes of a call, each with true if there are lanes after it. A lane has had no more jobs than its last
-- sequence says, except a lane of ad-hoc exports, whose jobs are not numbered. So a call has many short lanes.
-- $1 text: the consumer of the lane after which the call begins
-- $2 text: its dataset
-- $3 bigint: the number of jobs that the retention keeps in a lane
-- $4 bigint: the limit on the jobs that the call counts
-- $5 bigint: the limit on lanes
select consumer_id, dataset, has_more
from (
  select l.consumer_id, l.dataset, lead(l.consumer_id) over lanes is not null as has_more,
    row_number() over lanes as place,
    sum(1 + case l.consumer_id when '' then $3 else least(l.last_sequence, $3) end) over lanes as counted
  from (
    select consumer_id, dataset, last_sequence from cdc_export.lanes where (consumer_id, dataset) > ($1, $2)
    order by consumer_id, dataset limit $5 + 1) l
  window lanes as (order by l.consumer_id, l.dataset)) page
where place <= $5 and (counted <= $4 or place = 1)
order by consumer_id, dataset
