-- store.files.last_of_lane
-- Returns the files of a lane's last completed job.
-- $1 text: the consumer
-- $2 text: the dataset
select
  -- include files/columns.sql
from exports e
where e.consumer_id = $1 and e.dataset = $2 and e.status = 'completed'
order by e.lane_sequence desc
limit 1
