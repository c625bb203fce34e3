-- store.lanes.published
-- $1 text: the consumer
-- $2 text: the dataset
-- $3 bigint: the number
-- $4 bigint: the limit on exports
select
  -- include export_columns.sql
from cdc_export.exports e
join cdc_export.jobs j on j.id = e.job
where e.consumer_id = $1 and e.dataset = $2 and e.number > $3
order by e.number
limit $4
