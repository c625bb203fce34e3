-- store.jobs.last
-- $1 text[]: the consumer of each lane
-- $2 text[]: the dataset of each lane
select last.*
from unnest($1, $2) as l (consumer_id, dataset)
cross join lateral (
  select
    -- include export_columns.sql
  from cdc_export.exports e
  join cdc_export.jobs j on j.id = e.job
  where e.consumer_id = l.consumer_id and e.dataset = l.dataset
  order by e.lane_sequence desc
  limit 1) last
