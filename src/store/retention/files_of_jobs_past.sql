-- store.retention.files_of_jobs_past
-- Returns the files of jobs past the retention of jobs, those of another database too.
-- $1 text[]: the consumers; the empty one has the ad-hoc exports
-- $2 bigint: how many ended jobs of a consumer are kept; null: any number
-- $3 float8: for how many seconds a job is kept; null: for ever
-- $4 uuid: the destination
-- $5 bigint: how many files are returned at most
-- $6 float8: for how many seconds an export that is not acknowledged is kept
-- include retention/bounds_of_jobs.sql
select
  -- include files/columns.sql
  ,
  (select e.number from cdc_export.lanes l
   where l.consumer_id = e.consumer_id and l.dataset = e.dataset and e.number > l.acknowledged) as unacknowledged
from bounds
cross join lateral (
  select f.*
  from exports f
  where f.destination_id = $4 and coalesce(f.consumer_id, '') = bounds.consumer_id
    and f.status = 'completed' and f.published_at is not null and f.file_removed_at is null
    and (f.finished_at, f.id) <= (bounds.finished_at, bounds.id)
    -- Spares an export that a consumer which acknowledges has not acknowledged yet. Numbers are compared as they are,
    -- also if a restore set them back or skipped some: at worst an export is kept for longer.
    and not exists (
      select from cdc_export.lanes l
      where l.consumer_id = f.consumer_id and l.dataset = f.dataset and f.number > l.acknowledged
        and extract(epoch from clock_timestamp() - f.published_at) < $6)
  order by f.finished_at, f.id
  limit $5) e
limit $5
