-- store.queue.settle
-- $1 uuid: the job
-- $2 uuid: the lease token
-- $3 boolean: true if the job fails even with attempts left
-- $4 integer: the number of attempts that don't count, 0 or 1
-- $5 text: the error's code; null keeps the error of an earlier attempt
-- $6 text: the error's detail
-- $7 text: the dataset that the error is of; null: it concerns all
-- $8 text: the result of the guard
-- $9 float8: the seconds until the next attempt
-- $10 float8: the seconds for which no job of the dataset is claimed; null: the table was not locked
-- $11 text[]: the datasets that a full export would help
-- $12 float8[]: the pauses in seconds after attempts that give way; null: this one did not
with held as materialized (
  -- The row lock waits for a commit of this attempt that is under way.
  select id, cancel_requested_at is not null as is_cancelled,
    -- Such exports may become full ones. That is no attempt, and happens to each of them once at most.
    heals and exists (
      select from cdc_export.exports e
      where e.job = $1 and e.dataset = any ($11) and e.export_type <> 'full') as is_healed,
    $3 or attempt - $4 >= max_attempts or gave_way >= cardinality($12) as has_failed
  from cdc_export.jobs
  where id = $1 and lease_token = $2 and status = 'processing'
  for update
),
decided as (
  select id, is_healed and not is_cancelled as is_healed,
    case
      when is_cancelled then 'cancelled'
      when is_healed then 'pending'
      when has_failed then 'failed'
      else 'pending' end as next
  from held
),
locked as (
  insert into cdc_export.locked_datasets as l (name, until)
  select e.dataset, clock_timestamp() + make_interval(secs => $10)
  from decided
  join cdc_export.exports e on e.job = decided.id
  where $10 is not null and ($7 is null or e.dataset = $7)
  on conflict (name) do update set until = excluded.until
),
j as (
  update cdc_export.jobs job
  set status = decided.next, open_exports = case decided.next when 'pending' then job.open_exports else 0 end,
      attempt = job.attempt - case when decided.next <> 'pending' then 0 when decided.is_healed then 1 else $4 end,
      lease_token = null, lease_owner = null, lease_expires_at = null,
      run_at = clock_timestamp() + make_interval(
        secs => case when decided.is_healed then 0 else coalesce(($12)[job.gave_way + 1], $9) end),
      gave_way = job.gave_way + ($12 is not null)::integer, purge_hold = null,
      error_code = case when decided.next <> 'cancelled' then coalesce($5, job.error_code) end,
      error_detail = case when decided.next <> 'cancelled' then coalesce($6, job.error_detail) end,
      error_dataset = case
        when decided.next = 'cancelled' then null
        when $5 is null then job.error_dataset
        else $7 end
  from decided
  where job.id = decided.id
  returning job.*, decided.next, decided.is_healed
),
e as (
  update cdc_export.exports export
  set status = case j.next when 'pending' then 'open' else j.next end, progress = 0,
      rows_exported = case j.next when 'pending' then 0 else export.rows_exported end,
      bytes_written = case j.next when 'pending' then 0 else export.bytes_written end,
      rows_expected = null,
      finished_at = case when j.next <> 'pending' then greatest(clock_timestamp(), j.started_at) end,
      export_type = case when healed.becomes_full then 'full' else export.export_type end,
      -- No other name may be the same but for the extension.
      output_filename = case when healed.becomes_full and not exists (
          select from cdc_export.exports other
          where lower(other.output_filename) >= healed.as_full || '.'
            and lower(other.output_filename) < healed.as_full || '/')
        then regexp_replace(export.output_filename, '^[a-z]+', 'full') else export.output_filename end,
      report = case when $8 is not null and ($7 is null or export.dataset = $7) then
        jsonb_build_object('continuity', $8::text) end
  from j
  join cdc_export.exports own on own.job = j.id
  cross join lateral (
    select j.is_healed and own.dataset = any ($11) as becomes_full,
      lower(regexp_replace(own.output_filename, '^[a-z]+(.*Z(-\d+)?)\.[a-z.]+$', 'full\1')) as as_full) healed
  where export.job = own.job and export.dataset = own.dataset
  returning export.*
)
select 'processing' as was, j.status as job_status,
  -- include export_columns.sql
from j
join e on e.job = j.id
