-- store.queue.claim
-- Claims the ready job with the first turn. Returns its exports, or one row without an export if none is ready.
-- $1 text[]: the formats that the process knows
-- $2 text[]: the datasets in its catalog
-- $3 uuid: its destination
-- $4 uuid[]: the destinations that no process has used for a minute
-- $5 uuid: the new lease token
-- $6 text: the name of the process, for people
-- $7 float8: the length of the lease in seconds
-- $8 text: the name of the session that will commit the job
with ready as materialized (
  select j.id
  from cdc_export.jobs j
  where j.run_at <= statement_timestamp() and
    -- include queue/ready.sql
  order by j.turn, j.created_at
  limit 1
  for update skip locked
),
trial as (
  -- The table was locked a moment ago, so this attempt tries it. Other jobs wait for its outcome.
  update cdc_export.locked_datasets l
  set until = clock_timestamp() + interval '10 seconds'
  from ready
  join cdc_export.exports e on e.job = ready.id
  where l.name = e.dataset
  returning l.name
),
j as (
  update cdc_export.jobs job
  set status = 'processing', attempt = job.attempt + 1,
      lease_token = $5, lease_owner = $6, lease_expires_at = clock_timestamp() + make_interval(secs => $7),
      destination_id = $3, session = $8, purge_hold = pg_current_snapshot(),
      -- The times of a lane never go back, even if the clock does, because retention counts from the newest export.
      started_at = coalesce(job.started_at, greatest(clock_timestamp(), job.created_at, (
        select max(last.finished_at)
        from cdc_export.exports own
        cross join lateral (
          select l.finished_at from cdc_export.exports l
          where l.consumer_id = own.consumer_id and l.dataset = own.dataset and l.number is not null
          order by l.number desc limit 1) last
        where own.job = job.id)))
  from ready
  where job.id = ready.id and job.status = 'pending'
  returning job.*
)
select cdc_export.database_id() as database, exists (select from trial) as is_trial,
  -- The `order by` makes Postgres use an index.
  (select other.id from cdc_export.jobs other
   where other.status = 'pending' and other.run_at <= statement_timestamp() and other.id is distinct from j.id
   order by other.turn, other.created_at limit 1) is not null as has_others,
  1 + coalesce((
    select l.last_number from cdc_export.lanes l
    where l.consumer_id = e.consumer_id and l.dataset = e.dataset), 0) as next_number,
  (select last.digest from cdc_export.exports last
   where last.consumer_id = e.consumer_id and last.dataset = e.dataset and last.number is not null
   order by last.number desc limit 1) as previous,
  -- include export_columns.sql
from (select) one
left join (j join cdc_export.exports e on e.job = j.id) on true
order by e.dataset
