-- store.lanes.evidence
-- Returns the evidence about the database that each lane's marker and the job have, in the order of the lanes. WAL
-- survives as a prefix, and an export's snapshot saw only what was committed before the export's completion. So if the
-- database knows the last export that was handed out as completed, it has lost nothing that was handed out. An older
-- export that it knows proves nothing: later files may be elsewhere.
-- $1 uuid: the job, which has an export in each lane; null: none
-- $2 text[]: the consumer of each lane; null: the export is ad hoc
-- $3 text[]: the dataset of each lane
-- $4 uuid[]: the job that the marker of each lane names; null: there is no marker
-- $5 text[]: the SHA-256 that the marker has of that job
select evidence.confirms, evidence.contradicts,
  coalesce(j.database_id <> cdc_export.database_id() or lane.marker_job = j.id
    or j.timeline <> cdc_export.timeline() and not evidence.confirms
    -- A copy of the data is put back while there is no server.
    or j.server_started_at <> pg_postmaster_start_time() and evidence.contradicts, false) as is_restored,
  -- A position may be removed right after this statement.
  l.removed_number is not null or w.id is not null as had_position
from unnest($2, $3, $4, $5) with ordinality as lane (consumer_id, dataset, marker_job, marker_sha256, place)
left join cdc_export.jobs j on j.id = $1
left join cdc_export.exports own on own.job = j.id and own.dataset = lane.dataset
left join cdc_export.lanes l on l.consumer_id = lane.consumer_id and l.dataset = lane.dataset
left join watermarks w on w.consumer_id = lane.consumer_id and w.dataset = lane.dataset
-- The export that the caller had loaded last was checked when it asked. That counts unless the database was restored
-- since.
cross join lateral (
  select coalesce(own.has_after and j.timeline = cdc_export.timeline()
    and j.server_started_at = pg_postmaster_start_time(), false) as is_valid) after
cross join lateral (
  select
    after.is_valid or coalesce((lane.marker_job, lane.marker_sha256) = (
      -- The one that is not published yet, or the last published one.
      (select e.job, e.sha256
       from cdc_export.exports e
       where e.consumer_id = lane.consumer_id and e.dataset = lane.dataset and e.status = 'completed'
         and e.published_at is null
       order by e.lane_sequence desc limit 1)
      union all
      (select e.job, e.sha256
       from cdc_export.exports e
       where e.consumer_id = lane.consumer_id and e.dataset = lane.dataset and e.number is not null
       order by e.number desc limit 1)
      limit 1), false) as confirms,
    not after.is_valid and (lane.marker_job is not null and not exists (
      select from cdc_export.exports e
      where e.job = lane.marker_job and e.consumer_id = lane.consumer_id and e.dataset = lane.dataset
        and (e.status = 'completed' and e.sha256 = lane.marker_sha256
          -- A failed export that was committed lost its file.
          or e.status = 'failed' and e.columns_hash is not null))
      -- Somebody put an earlier position back. The log may have lost the changes of the exports since.
      or exists (
        select from cdc_export.exports e
        where e.consumer_id = lane.consumer_id and e.dataset = lane.dataset and e.status in ('completed', 'skipped')
          and e.lane_sequence > (w.guard_state ->> 'lane_sequence')::bigint)) as contradicts) evidence
order by lane.place
