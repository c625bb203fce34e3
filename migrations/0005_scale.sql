-- Statements whose cost does not grow with what they don't need.

-- A page of one receiver's deliveries, also of a receiver that has none.
create index deliveries_of_endpoint on cdc_export.deliveries (endpoint, id);
