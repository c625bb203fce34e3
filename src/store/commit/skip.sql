-- store.commit.skip
-- Completes jobs that found nothing, without files, and removes earlier jobs of this kind from their lanes.
-- Returns no row of a job if another worker has the lease or a client cancelled the job.
-- $1 uuid[]: the jobs
-- $2 uuid: the lease token
-- $3 timestamptz[]: their watermarks, which stay
-- $4 jsonb[]: their reports
with skipped as (
  update exports e
  set status = 'skipped', progress = 100, finished_at = greatest(clock_timestamp(), e.started_at),
      lease_token = null, lease_owner = null, lease_expires_at = null, purge_hold = null,
      error_code = null, error_detail = null, rows_exported = 0, bytes_written = 0,
      watermark_from = its.watermark, watermark_to = its.watermark, report = its.report
  from unnest($1, $3, $4) as its (id, watermark, report)
  where e.id = its.id and e.lease_token = $2 and e.status = 'processing' and e.cancel_requested_at is null
  returning e.*
),
removed as (
  delete from exports earlier
  using skipped
  where earlier.consumer_id = skipped.consumer_id and earlier.dataset = skipped.dataset
    and earlier.status = 'skipped' and earlier.id <> skipped.id
    -- Whoever waits for it may still look.
    and earlier.finished_at < statement_timestamp() - interval '1 minute'
    -- A batch is found by its first member.
    and not (earlier.batch_id = earlier.id and exists (
      select from exports m where m.batch_id = earlier.id and m.status = 'completed'))
    -- Its event is still to be told, or its batch's.
    and not exists (
      select from cdc_export.deliveries d
      where d.job = coalesce(earlier.batch_id, earlier.id) and d.delivered_at is null and d.dead_at is null)
)
select 'processing' as was,
  -- include job_columns.sql
from skipped e
