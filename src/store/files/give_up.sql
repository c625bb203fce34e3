-- store.files.give_up
-- Fails a committed job whose file was lost before it was published, and blocks the consumer's position.
-- $1 uuid: the job
-- $2 text: its final name
-- $3 float8: the minimum age of the commit in seconds
-- $4 text: the error's code
-- $5 text: the error's detail
-- $6 text: the result of the guard
with lost as (
  update exports e
  set status = 'failed', progress = least(e.progress, 99), finished_at = greatest(clock_timestamp(), e.finished_at),
      error_code = $4, error_detail = $5,
      report = coalesce(e.report, '{}') || jsonb_build_object('continuity', $6::text),
      staged_name = null, sha256 = null, file_columns = null, manifest = null, digest = null
  where e.id = $1 and e.status = 'completed' and e.published_at is null and e.output_filename = $2
    -- The age of a commit in the future is not known: the clock was set back since.
    and e.finished_at not between clock_timestamp() - make_interval(secs => $3) and clock_timestamp()
  returning 'processing' as was,
  -- include job_columns.sql
),
forgotten as (
  delete from cdc_export.files f using lost where f.job = lost.id
),
barred as (
  -- A running export of the lane finds its position changed and starts again. A full export that was completed since
  -- has delivered the lost rows.
  update watermarks w set file_lost = true, version = w.version + 1
  from lost
  where w.consumer_id = lost.consumer_id and w.dataset = lost.dataset
    and not exists (
      select from exports later
      where later.consumer_id = lost.consumer_id and later.dataset = lost.dataset
        and later.lane_sequence > lost.lane_sequence
        and later.export_type = 'full' and later.status = 'completed')
)
select * from lost
