-- store.queue.scan_start
-- Returns a time before which no job is ready. A job that is being submitted is not visible yet, and may be as old as
-- the timeout of a client's call: so the time is a minute before that of the oldest job.
-- $1 text[]: the formats that the process knows
-- $2 text[]: the compressions that it knows
-- $3 text[]: the datasets in its catalog
-- $4 uuid: its destination
select least((
  select c.run_at
  from cdc_export.claimable_jobs c
  where c.format = any ($1) and c.compression = any ($2) and c.dataset = any ($3)
    and (c.destination_id is null or c.destination_id = $4
      or not exists (select from cdc_export.live_destinations d where d.id = c.destination_id))
  order by c.run_at
  limit 1), statement_timestamp()) - interval '1 minute'
