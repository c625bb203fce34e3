-- store.retention.manifests_past
-- Returns the manifests past their retention, with the exports' files, which are removed already. The service of the
-- database that made an export removes its manifest. None is returned that is later than one which stays.
-- $1 text[]: the consumers of the lanes
-- $2 text[]: their datasets
-- $3 bigint: the number of kept manifests of a lane; null for no limit
-- $4 float8: the seconds for which a manifest is kept; null for no limit
-- $5 uuid: the destination
-- $6 bigint: the limit on returned manifests
with bounds as (
  -- The first export of the lane whose manifest stays in any case: the newest full one, or one that has its file. And
  -- the newest manifest that is past the count.
  select l.consumer_id, l.dataset,
    least(base.number, (
      select k.number from exports k
      where k.destination_id = $5 and k.consumer_id = l.consumer_id and k.dataset = l.dataset
        and k.number is not null and k.file_removed_at is null
      order by k.number limit 1)) as first_kept,
    case when $3 is null then null else (
      select m.number from exports m
      where m.consumer_id = l.consumer_id and m.dataset = l.dataset and m.number is not null and m.manifest is not null
      order by m.number desc
      offset $3 limit 1) end as past_count
  from unnest($1, $2) as l (consumer_id, dataset)
  cross join lateral (
    select n.number from exports n
    where n.consumer_id || ' ' || n.dataset || ' ' || n.export_type || ' '
      || case when n.status = 'completed' and n.published_at is null then 'processing' else n.status end
      = l.consumer_id || ' ' || l.dataset || ' full completed'
    order by n.created_at desc, n.id desc limit 1) base
)
select
  -- include files/columns.sql
  , e.manifest_text as text
from bounds
cross join lateral (
  select m.*, m.manifest as manifest_text
  from exports m
  where m.consumer_id = bounds.consumer_id and m.dataset = bounds.dataset
    and m.number is not null and m.manifest is not null
    and m.number < bounds.first_kept
    -- The times of a lane never go back, so no later manifest is older.
    and (m.number <= bounds.past_count or extract(epoch from clock_timestamp() - m.finished_at) > $4)
    and m.file_removed_at is not null and m.destination_id = $5
    and m.database_id = (select cdc_export.database_id())
  order by m.number
  limit $6) e
limit $6
