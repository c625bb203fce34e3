-- store.queue.settle
-- Ends an attempt without completing its jobs, those of a batch or one: they become pending, failed or cancelled.
-- $1 uuid: the job, or the batch
-- $2 uuid: the lease token
-- $3 boolean: true if the job fails even with attempts left
-- $4 integer: the number of attempts that don't count, 0 or 1
-- $5 text: the error's code; null keeps the code of an earlier attempt
-- $6 text: the error's detail
-- $7 text: the result of the guard
-- $8 float8: the seconds until the next attempt
-- $9 float8: the seconds for which no job of the dataset is claimed; null: the table was not locked
-- $10 uuid: the member of a batch that ended the attempt; null: none did, the cause concerns each
-- $11 text: the error's code of the other members
-- $12 text: the error's detail of the other members
-- $13 uuid[]: the jobs that a full export would help
-- $14 float8[]: the pauses in seconds after attempts that give way; null: this one did not
with batch as (
  -- Such jobs may become full exports. That is no attempt, and happens to each of them once at most.
  select exists (select from exports where id = any ($13) and heals and export_type <> 'full') as heals
),
held as (
  -- The row lock waits for a commit of this attempt that is under way.
  select id, $10 is null or id = $10 as is_cause,
    lower(regexp_replace(output_filename, '^[a-z]+(.*Z(-\d+)?)\.[a-z.]+$', 'full\1')) as as_full,
    case
      when cancel_requested_at is not null then 'cancelled'
      when (select heals from batch) then 'pending'
      when $3 or attempt - $4 >= max_attempts or gave_way >= cardinality($14) then 'failed'
      else 'pending' end as next
  from exports
  where (id = $1 or batch_id = $1) and lease_token = $2 and status = 'processing'
  order by id
  for update
)
update exports e
set status = held.next, progress = 0,
    attempt = e.attempt - case when held.next <> 'pending' then 0 when batch.heals then 1 else $4 end,
    export_type = case when batch.heals and e.id = any ($13) then 'full' else e.export_type end,
    -- No other name may be the same but for the extension.
    output_filename = case when batch.heals and e.id = any ($13) and not exists (
        select from exports other
        where lower(other.output_filename) >= held.as_full || '.'
          and lower(other.output_filename) < held.as_full || '/')
      then regexp_replace(e.output_filename, '^[a-z]+', 'full') else e.output_filename end,
    lease_token = null, lease_owner = null, lease_expires_at = null,
    finished_at = case when held.next <> 'pending' then greatest(clock_timestamp(), e.started_at) end,
    run_at = clock_timestamp() + make_interval(
      secs => case when batch.heals then 0 else coalesce(($14)[e.gave_way + 1], $8) end),
    gave_way = e.gave_way + ($14 is not null)::integer, purge_hold = null,
    report = case when held.is_cause and $7 is not null then jsonb_build_object('continuity', $7::text) end,
    locked_until = coalesce(
      case when held.is_cause then clock_timestamp() + make_interval(secs => $9) end, e.locked_until),
    error_code = case when held.next <> 'cancelled' then
      coalesce(case when held.is_cause then $5 else $11 end, e.error_code) end,
    error_detail = case when held.next <> 'cancelled' then
      coalesce(case when held.is_cause then $6 else $12 end, e.error_detail) end
from held, batch
where e.id = held.id
returning 'processing' as was,
  -- include job_columns.sql
