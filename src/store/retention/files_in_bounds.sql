-- The files of exports `e` of the lanes in `bounds` that are past the retention, the oldest first. A job keeps all
-- of its files or none: the first export that has its files decides for the others.
-- $3 to $9 are the parameters of `retention/files_past.sql`.
from bounds
cross join lateral (
  select f.job
  from cdc_export.exports f
  join cdc_export.jobs own on own.id = f.job
  left join cdc_export.lanes l on l.consumer_id = f.consumer_id and l.dataset = f.dataset
  where f.destination_id = $6 and coalesce(f.consumer_id, '') = bounds.consumer_id and f.dataset = bounds.dataset
    and f.published_at is not null and f.file_removed_at is null
    and (f.finished_at, f.job) <= (bounds.finished_at, bounds.job)
    and (not $9 or own.database_id = (select cdc_export.database_id()))
    and
    -- include retention/may_go.sql
    and (own.datasets is null or not exists (
      select from cdc_export.exports before
      where before.job = f.job and before.dataset < f.dataset
        and before.status = 'completed' and before.file_removed_at is null)
    and not exists (
      select from (select f.job, f.dataset) first
      join cdc_export.exports f on f.job = first.job and f.dataset > first.dataset
      left join lateral (
        -- The limit makes Postgres look each lane up.
        select l.acknowledged, l.last_number from cdc_export.lanes l
        where l.consumer_id = f.consumer_id and l.dataset = f.dataset limit 1) l on true
      where f.status = 'completed' and f.file_removed_at is null and not coalesce(
        f.published_at is not null
        -- The numbers of a lane have no gaps, so this needs no count of its newer files.
        and (f.finished_at <= $5 - make_interval(secs => $4) or l.last_number - f.number >= $3)
        and
        -- include retention/may_go.sql
        , false)))
  order by f.finished_at, f.job
  limit $7) past
join cdc_export.jobs j on j.id = past.job
cross join lateral (
  select f.*, l.acknowledged
  from cdc_export.exports f
  left join cdc_export.lanes l on l.consumer_id = f.consumer_id and l.dataset = f.dataset
  where f.job = past.job and f.status = 'completed' and f.file_removed_at is null) e
limit $7
