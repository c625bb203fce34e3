-- The files `e` of the lanes in `bounds` that are past the retention, the oldest first. Of a batch all files or none:
-- the first member that has its files decides for all of them.
-- $3 to $8 are the parameters of `retention/files_past.sql`.
from bounds
cross join lateral (
  select f.id, f.batch_id
  from exports f
  left join cdc_export.lanes l on l.consumer_id = f.consumer_id and l.dataset = f.dataset
  where f.destination_id = $5 and coalesce(f.consumer_id, '') = bounds.consumer_id and f.dataset = bounds.dataset
    and f.status = 'completed' and f.published_at is not null and f.file_removed_at is null
    and (f.finished_at, f.id) <= (bounds.finished_at, bounds.id)
    and (not $8 or f.database_id = (select cdc_export.database_id()))
    and
    -- include retention/may_go.sql
    and (f.batch_id is null or not exists (
      select from exports before
      where before.batch_id = f.batch_id and before.dataset < f.dataset
        and before.status = 'completed' and before.file_removed_at is null)
    and not exists (
      select from (select f.batch_id as id, f.dataset) first
      join exports f on f.batch_id = first.id and f.dataset > first.dataset
      left join lateral (
        -- The limit makes Postgres look each lane up.
        select l.acknowledged, l.last_number from cdc_export.lanes l
        where l.consumer_id = f.consumer_id and l.dataset = f.dataset limit 1) l on true
      where f.status = 'completed' and f.file_removed_at is null and not coalesce(
        f.published_at is not null
        -- The numbers of a lane have no gaps, so this needs no count of its newer files.
        and (f.finished_at <= clock_timestamp() - make_interval(secs => $4) or l.last_number - f.number >= $3)
        and
        -- include retention/may_go.sql
        , false)))
  order by f.finished_at, f.id
  limit $6) past
cross join lateral (
  select past.id
  union all
  select m.id from exports m
  where m.batch_id = past.batch_id and m.id <> past.id and m.status = 'completed' and m.file_removed_at is null) its
cross join lateral (
  select f.*, l.acknowledged
  from exports f
  left join cdc_export.lanes l on l.consumer_id = f.consumer_id and l.dataset = f.dataset
  where f.id = its.id) e
limit $6
