-- store.retention.files_of_jobs_past
-- Returns the files of jobs past the retention of jobs, including files of another database.
-- $1 text[]: the consumers; the empty one has the ad-hoc exports
-- $2 bigint: the number of kept ended jobs of a consumer; null for no limit
-- $3 float8: the seconds for which a job is kept; null for no limit
-- $4 uuid: the destination
-- $5 bigint: the limit on returned files
-- $6 float8: the seconds for which an unacknowledged export is kept
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
    -- Spares an export that an acknowledging consumer has not acknowledged yet. A restore may have set the numbers back
    -- or left gaps. At worst this keeps an export for longer.
    and not exists (
      select from cdc_export.lanes l
      where l.consumer_id = f.consumer_id and l.dataset = f.dataset and f.number > l.acknowledged
        and extract(epoch from clock_timestamp() - f.published_at) < $6)
  order by f.finished_at, f.id
  limit $5) e
limit $5
