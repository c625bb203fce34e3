-- store.retention.manifests_past
-- Returns the manifests of exports past the retention of jobs, with the exports' files, which are removed already. The
-- service of the database that made an export removes its manifest. None is returned that is later than one which
-- stays.
-- $1 text[]: the consumers of the lanes
-- $2 text[]: their datasets
-- $3 bigint: the number of kept ended jobs of a lane; null for no limit
-- $4 float8: the seconds for which a job is kept; null for no limit
-- $5 timestamptz: the present time; null: no clock is believed, and nothing is too old
-- $6 uuid: the destination
-- $7 bigint: the limit on returned manifests
-- include retention/bounds_of_jobs.sql
,
-- The first export of the lane whose manifest stays in any case: the newest full one, or one that has its file.
kept as (
  select bounds.*,
    least(base.number, (
      select k.number from cdc_export.exports k
      where k.destination_id = $6 and coalesce(k.consumer_id, '') = bounds.consumer_id and k.dataset = bounds.dataset
        and k.published_at is not null and k.file_removed_at is null
      order by k.finished_at, k.job limit 1)) as first_kept
  from bounds
  cross join lateral (
    select n.number from cdc_export.exports n
    where n.consumer_id || ' ' || n.dataset || ' ' || n.export_type || ' '
      || case when n.status = 'completed' and n.published_at is null then 'open' else n.status end
      = bounds.consumer_id || ' ' || bounds.dataset || ' full completed'
    order by n.job desc limit 1) base
)
select
  -- include files/columns.sql
  , e.manifest_text as text
from kept
cross join lateral (
  select m.*, m.manifest as manifest_text
  from cdc_export.exports m
  where m.consumer_id = kept.consumer_id and m.dataset = kept.dataset
    and m.number is not null and m.manifest is not null
    and m.number < kept.first_kept
    -- The times of a lane never go back, so no later manifest is older.
    and (m.finished_at, m.job) <= (kept.finished_at, kept.job)
    and m.file_removed_at is not null and m.destination_id = $6
  order by m.number
  limit $7) e
join cdc_export.jobs j on j.id = e.job and j.database_id = (select cdc_export.database_id())
limit $7
