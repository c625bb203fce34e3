-- store.lanes.under_way
-- $1 text: the consumer
-- $2 text: the dataset
-- $3 bigint: the limit on exports
select
  -- include export_columns.sql
from cdc_export.exports e
join cdc_export.jobs j on j.id = e.job
where e.consumer_id = $1 and e.dataset = $2 and e.published_at is null and e.status in ('open', 'completed')
order by e.lane_sequence
limit $3
