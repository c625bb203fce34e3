-- The files `e` of the lanes in `bounds` that are past the retention, the oldest first.
-- $5 to $8 are the parameters of `retention/files_past.sql`.
from bounds
cross join lateral (
  select f.*, l.acknowledged
  from exports f
  left join cdc_export.lanes l on l.consumer_id = f.consumer_id and l.dataset = f.dataset
  where f.destination_id = $5 and coalesce(f.consumer_id, '') = bounds.consumer_id and f.dataset = bounds.dataset
    and f.status = 'completed' and f.published_at is not null and f.file_removed_at is null
    and (f.finished_at, f.id) <= (bounds.finished_at, bounds.id)
    and (not $8 or f.database_id = (select cdc_export.database_id()))
    -- Spares an export that its consumer may not have. A restore may have set the numbers back or left gaps. At worst
    -- this keeps an export for longer.
    and not (f.consumer_id is not null and extract(epoch from clock_timestamp() - f.published_at) < $7
      and case when l.acknowledged is not null then f.number > l.acknowledged
        -- Nobody fetched all of its files, and it is the lane's newest full export or a later one.
        else exists (select from cdc_export.files p where p.job = f.id and p.fetched_at is null)
          and f.number >= coalesce((
            select n.number from exports n
            where n.consumer_id || ' ' || n.dataset || ' ' || n.export_type || ' '
              || case when n.status = 'completed' and n.published_at is null then 'processing' else n.status end
              = f.consumer_id || ' ' || f.dataset || ' full completed'
            order by n.created_at desc, n.id desc limit 1), 0)
        end)
  order by f.finished_at, f.id
  limit $6) e
limit $6
