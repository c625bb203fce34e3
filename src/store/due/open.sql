-- store.due.open
-- Returns if a worker can claim a job, and if a lease or a session of a lease has ended. The statements that do the
-- work have the same conditions.
-- $1 text[]: the formats that the process knows
-- $2 text[]: the datasets in its catalog
-- $3 uuid: its destination
-- $4 uuid[]: the destinations that no process has used for a minute
select
  -- Each `order by` makes Postgres use an index.
  (select j.id
   from cdc_export.jobs j
   where j.run_at <= statement_timestamp() and
     -- include queue/ready.sql
   order by j.turn, j.created_at
   limit 1) is not null,
  coalesce((
    select j.lease_expires_at from cdc_export.jobs j
    where j.status = 'processing' order by j.lease_expires_at limit 1) < statement_timestamp(), false)
  or exists (
    select from cdc_export.jobs j
    where
      -- include queue/orphaned.sql
  )
