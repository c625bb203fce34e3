-- store.files.published
-- Records that a job's files have their final names, and numbers the export in its lane.
-- $1 uuid: the job
-- $2 text: the final name that the publisher used
-- $3 jsonb[]: the place of each file
-- $4 text[]: the URL of each file
-- $5 text: the manifest that the publisher wrote; null if it wrote none
with job as materialized (
  -- If the manifest changed, another process plans the number anew. A second publisher waits here and finds no row.
  select e.id, e.consumer_id, e.dataset, e.lane_sequence
  from exports e
  where e.id = $1 and e.status = 'completed' and e.published_at is null and e.output_filename = $2
    and ($5 is null or e.manifest = $5)
  for update
),
numbered as (
  insert into cdc_export.lanes as l (consumer_id, dataset, last_sequence, last_number)
  select job.consumer_id, job.dataset, job.lane_sequence, 1 from job where job.consumer_id is not null
  on conflict (consumer_id, dataset) do update set last_number = l.last_number + 1
  returning last_number
),
placed as (
  update cdc_export.files f set place = p.place, location = p.location
  from job, unnest($3, $4) with ordinality as p (place, location, part)
  where f.job = job.id and f.part = p.part
)
update exports e
set published_at = greatest(clock_timestamp(), e.finished_at), number = (select last_number from numbered)
from job
where e.id = job.id
returning 'processing' as was,
  -- include job_columns.sql
