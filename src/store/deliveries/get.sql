-- store.deliveries.get
-- $1 uuid: the delivery
select
  -- include deliveries/columns.sql
from cdc_export.deliveries d
where d.id = $1
