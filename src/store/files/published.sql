-- store.files.published
-- Records that an export's files have their final names, and numbers the export in its lane. The last one of a job ends
-- the job.
-- $1 uuid: the job
-- $2 text: the dataset
-- $3 text: the final name that the publisher used
-- $4 jsonb[]: the place of each file
-- $5 text[]: the URL of each file
-- $6 text: the manifest that the publisher wrote; null if it wrote none
with own as materialized (
  -- If the manifest changed, another process plans the number anew. A second publisher waits here and finds no row.
  select e.job, e.consumer_id, e.dataset, e.lane_sequence
  from cdc_export.exports e
  -- Without `is null`, so that Postgres takes the primary key, and not the index of open exports.
  where e.job = $1 and e.dataset = $2 and e.status = 'completed' and coalesce(e.published_at, 'infinity') = 'infinity'
    and e.output_filename = $3 and ($6 is null or e.manifest = $6)
  for update
),
numbered as (
  insert into cdc_export.lanes as l (consumer_id, dataset, last_sequence, last_number)
  select own.consumer_id, own.dataset, own.lane_sequence, 1 from own where own.consumer_id is not null
  on conflict (consumer_id, dataset) do update set last_number = l.last_number + 1
  returning last_number
),
placed as (
  update cdc_export.files f set place = p.place, location = p.location
  from own, unnest($4, $5) with ordinality as p (place, location, part)
  where f.job = own.job and f.dataset = own.dataset and f.part = p.part
),
e as (
  update cdc_export.exports export
  set published_at = greatest(clock_timestamp(), export.finished_at), number = (select last_number from numbered)
  from own
  where export.job = own.job and export.dataset = own.dataset
  returning export.*
),
-- After the lane, whose lock is that of one consumer's exports. Publishers of other exports of the job wait for this
-- row alone, and then count down from the new number.
j as (
  update cdc_export.jobs job
  set open_exports = job.open_exports - 1,
      status = case
        when job.open_exports > 1 then job.status
        when job.error_code is null then 'completed'
        else 'failed' end
  from e
  where job.id = e.job
  returning job.*
)
select 'processing' as was, j.status as job_status,
  -- include export_columns.sql
from j
join e on e.job = j.id
