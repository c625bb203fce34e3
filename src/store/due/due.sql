-- store.due
-- Returns what there is to do now. The statements that do it have the same conditions.
-- $1 text[]: the formats that the process knows
-- $2 text[]: the datasets in its catalog
-- $3 uuid: its destination
-- $4 timestamptz: the claim scan start: the scan skips jobs with earlier turns; null: it skips none
-- $5 float8: the length of a lease in seconds
-- $6 float8[]: the longest pauses in seconds, after one attempt, two attempts and so on
-- $7 text[]: the receivers of events
select
  -- Each `order by` makes Postgres use an index.
  (select r.id
   from exports r
   where r.turn >= coalesce($4, '-infinity') and r.run_at <= statement_timestamp() and
     -- include queue/claimable.sql
   order by r.turn, r.created_at
   limit 1) is not null as has_jobs,
  coalesce((
    select e.lease_expires_at from exports e
    where e.status = 'processing' order by e.lease_expires_at limit 1) < statement_timestamp(), false)
  or coalesce((
    select e.lease_expires_at from exports e
    where e.status = 'processing' and e.lease_expires_at < 'infinity' order by e.lease_expires_at desc limit 1)
    > statement_timestamp() + 4 * make_interval(secs => $5), false)
  or exists (
    select from exports e
    where
      -- include queue/orphaned.sql
  )
  or exists (
    select from exports e
    where e.status = 'pending' and e.run_at > statement_timestamp()
      and e.run_at > statement_timestamp()
        + make_interval(secs => coalesce(($6)[least(e.attempt, cardinality($6))], 0)))
  or exists (
    select from cdc_export.deliveries d
    where d.endpoint = any ($7) and d.delivered_at is null and d.run_at > statement_timestamp()
      and d.run_at < 'infinity' and d.rescheduled_at > statement_timestamp()) as has_lapsed,
  (select e.destination_id from exports e
   where e.status = 'completed' and e.published_at is null
   order by e.destination_id limit 1) is not null as has_unpublished,
  not exists (
    select from cdc_export.destinations d
    where d.id = $3 and d.seen_at between statement_timestamp() - interval '10 seconds' and statement_timestamp())
    as is_unannounced,
  (select
     -- include moments/moved.sql
   from (select 1) one
   left join
     -- include moments/latest.sql
   on true) as log_has_moved, log.sequence as log_sequence, statement_timestamp() as looked_at
from (
    select coalesce(pg_sequence_last_value(pg_get_serial_sequence('cdc_export.change_log', 'sequence')::regclass), 0)
      as sequence) log
