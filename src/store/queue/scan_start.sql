-- store.queue.scan_start
-- Returns a turn before which no job is ready, true if a job can be claimed now or after its pause, and true if a job
-- waits without a pause.
-- A job that is being submitted is not visible yet, and its turn may be as old as the time limit of a client's call.
-- So the turn is one minute before the first one.
-- $1 text[]: the formats that the process knows
-- $2 text[]: the datasets in its catalog
-- $3 uuid: its destination
-- $4 uuid[]: the destinations that no process has used for a minute
select least(first.turn, statement_timestamp()) - interval '1 minute', first.turn is not null,
  exists (select from cdc_export.jobs j where j.status = 'pending' and j.run_at <= statement_timestamp())
from (select (
  select j.turn
  from cdc_export.jobs j
  where
    -- include queue/ready.sql
  order by j.turn
  limit 1) as turn) first
