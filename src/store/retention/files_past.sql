-- store.retention.files_past
-- Returns the files past the retention of files. The service of the database that made a file removes it.
-- $1 text[]: the consumers; the empty one has the ad-hoc exports
-- $2 bigint: the number of kept files of a consumer; null for no limit
-- $3 float8: the seconds for which a file is kept; null for no limit
-- $4 uuid: the destination
-- $5 bigint: the limit on returned files
-- $6 float8: the seconds for which an unacknowledged export is kept
with bounds as (
  -- The newest file of each consumer that is past the retention: the first file beyond the count, or an age limit.
  select c.consumer_id, bound.finished_at, bound.id
  from unnest($1) as c (consumer_id)
  cross join lateral (
    select b.finished_at, b.id
    from (
      (select f.finished_at, f.id
       from exports f
       where $2 is not null and f.destination_id = $4 and coalesce(f.consumer_id, '') = c.consumer_id
         and f.status = 'completed' and f.published_at is not null and f.file_removed_at is null
       order by f.finished_at desc, f.id desc
       offset $2 limit 1)
      union all
      select clock_timestamp() - make_interval(secs => $3), '00000000-0000-0000-0000-000000000000'::uuid
      where $3 is not null) b
    order by b.finished_at desc, b.id desc
    limit 1) bound
)
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
    and f.database_id = (select cdc_export.database_id())
    -- Spares an export that an acknowledging consumer has not acknowledged yet. A restore may have set the numbers back
    -- or left gaps. At worst this keeps an export for longer.
    and not exists (
      select from cdc_export.lanes l
      where l.consumer_id = f.consumer_id and l.dataset = f.dataset and f.number > l.acknowledged
        and extract(epoch from clock_timestamp() - f.published_at) < $6)
  order by f.finished_at, f.id
  limit $5) e
limit $5
