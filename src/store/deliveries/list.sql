-- store.deliveries.list
-- Returns a page of deliveries, newest first. The condition is literal, so an index applies.
-- $1 uuid: only deliveries before this one
-- $2 text: the receiver; null: any
-- $3 bigint: the limit on deliveries
select
  -- include deliveries/columns.sql
from cdc_export.deliveries d
where d.id < $1 and (
  -- include condition
)
order by d.id desc
limit $3
