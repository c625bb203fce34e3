-- store.files.last_of_lane
-- Returns the files of a lane's last completed export: the one that is not published yet, or the last published one.
-- $1 text: the consumer
-- $2 text: the dataset
select
  -- include files/columns.sql
from (
  (select job from cdc_export.exports
   where consumer_id = $1 and dataset = $2 and status = 'completed' and published_at is null
   order by lane_sequence desc limit 1)
  union all
  (select job from cdc_export.exports
   where consumer_id = $1 and dataset = $2 and number is not null order by number desc limit 1)
  limit 1) last
join cdc_export.exports e on e.job = last.job and e.dataset = $2
join cdc_export.jobs j on j.id = e.job
