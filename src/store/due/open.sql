-- store.due.open
-- Returns if a worker can claim a job, and if a lease or a session of a lease has ended or a time lies too far in the
-- future. The statements that do the work have the same conditions.
-- $1 text[]: the formats that the process knows
-- $2 text[]: the datasets in its catalog
-- $3 uuid: its destination
-- $4 uuid[]: the destinations that no process has used for a minute
-- $5 float8: the length of a lease in seconds
-- $6 float8[]: the longest pauses in seconds, after one attempt, two attempts and so on
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
  or coalesce((
    select j.lease_expires_at from cdc_export.jobs j
    where j.status = 'processing' order by j.lease_expires_at desc limit 1)
    > statement_timestamp() + 4 * make_interval(secs => $5), false)
  or exists (
    select from cdc_export.jobs j
    where
      -- include queue/orphaned.sql
  )
  or exists (
    select from cdc_export.jobs j
    where j.status = 'pending' and j.run_at > statement_timestamp()
      and j.run_at > statement_timestamp() + make_interval(secs => greatest(
        coalesce(($6)[least(j.attempt, cardinality($6))], 0), case when j.gave_way > 0 then 900 else 0 end)))
