-- store.files.give_up
-- Fails a committed export whose file was lost before it was published, and blocks the consumer's position. Its job
-- fails when the other exports are published.
-- $1 uuid: the job
-- $2 text: the dataset
-- $3 text: its final name
-- $4 float8: the minimum age of the commit in seconds
-- $5 text: the error's code
-- $6 text: the error's detail
-- $7 text: the result of the guard
with e as (
  update cdc_export.exports export
  set status = 'failed', progress = least(export.progress, 99),
      finished_at = greatest(clock_timestamp(), export.finished_at),
      report = coalesce(export.report, '{}') || jsonb_build_object('continuity', $7::text),
      staged_name = null, sha256 = null, file_columns = null, manifest = null, digest = null
  where export.job = $1 and export.dataset = $2 and export.status = 'completed' and export.published_at is null
    and export.output_filename = $3
    -- The age of a commit in the future is not known: the clock was set back since.
    and export.finished_at not between clock_timestamp() - make_interval(secs => $4) and clock_timestamp()
  returning export.*
),
j as (
  update cdc_export.jobs job
  set open_exports = job.open_exports - 1,
      status = case job.open_exports when 1 then 'failed' else job.status end,
      error_code = $5, error_detail = $6, error_dataset = e.dataset
  from e
  where job.id = e.job
  returning job.*
),
forgotten as (
  delete from cdc_export.files f using e where f.job = e.job and f.dataset = e.dataset
),
barred as (
  -- A running export of the lane finds its position changed and starts again. A full export that was completed since
  -- has delivered the lost rows.
  update watermarks w set file_lost = true, version = w.version + 1
  from e
  where w.consumer_id = e.consumer_id and w.dataset = e.dataset
    and not exists (
      select from cdc_export.exports later
      where later.consumer_id = e.consumer_id and later.dataset = e.dataset
        and later.lane_sequence > e.lane_sequence
        and later.export_type = 'full' and later.status = 'completed')
)
select 'processing' as was, j.status as job_status,
  -- include export_columns.sql
from j
join e on e.job = j.id
