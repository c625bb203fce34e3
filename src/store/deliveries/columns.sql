-- The columns of a `Delivery` `d`.
d.id as delivery, d.endpoint, d.job, d.event, d.attempt as delivery_attempt,
nullif(d.run_at, 'infinity') as run_at, d.delivered_at, d.dead_at, d.last_status, d.last_error,
d.created_at as event_at
