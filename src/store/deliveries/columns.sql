-- The columns of `deliveries::DeliveryRow`, of a delivery `d`. The event of a batch has the first member as its job,
-- and a prefix before the receiver's name: a release that doesn't know batches leaves it alone.
d.id as delivery, replace(d.endpoint, 'batch:', '') as endpoint, d.endpoint like 'batch:%' as is_of_batch, d.job,
d.event, d.attempt as delivery_attempt, nullif(d.run_at, 'infinity') as run_at, d.delivered_at, d.dead_at,
d.last_status, d.last_error, d.created_at as event_at
