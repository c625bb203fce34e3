-- The files `e` of the consumers in `bounds` that are past the retention, the oldest first.
-- $4 to $7 are the parameters of `retention/files_past.sql`.
from bounds
cross join lateral (
  select f.*
  from exports f
  where f.destination_id = $4 and coalesce(f.consumer_id, '') = bounds.consumer_id
    and f.status = 'completed' and f.published_at is not null and f.file_removed_at is null
    and (f.finished_at, f.id) <= (bounds.finished_at, bounds.id)
    and (not $7 or f.database_id = (select cdc_export.database_id()))
    -- Spares an export that an acknowledging consumer has not acknowledged yet. A restore may have set the numbers back
    -- or left gaps. At worst this keeps an export for longer.
    and not exists (
      select from cdc_export.lanes l
      where l.consumer_id = f.consumer_id and l.dataset = f.dataset and f.number > l.acknowledged
        and extract(epoch from clock_timestamp() - f.published_at) < $6)
  order by f.finished_at, f.id
  limit $5) e
limit $5
