-- store.activity.hours
-- Counts the completed and failed exports of each consumer and of each dataset in each hour since a time. The piece
-- `list` is that of store.lists.jobs. The hours are numbered from 0.
-- $1 text[]: the keys
-- $2 uuid: the first id that a job of the first hour may have
-- $3 timestamptz: the beginning of the first hour
-- $4 integer: the number of hours. Jobs that are newer by another clock count in the last hour
-- $5 bigint: the limit on jobs of each list
-- $6 text[]: the datasets; null: all
with listed as (
  select distinct next.id
  from unnest($1) as k (key)
  cross join lateral (
    select l.id
    from (
      -- include list
    ) l
    where (l.key, l.id) >= (k.key, $2) and (l.key, l.id) <= (k.key, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
    order by l.key desc, l.id desc
    limit $5) next
),
counted as (
  select e.consumer_id, e.dataset, e.status, e.rows_exported,
    least(greatest(floor(extract(epoch from j.created_at - $3) / 3600)::integer, 0), $4 - 1) as hour
  from listed
  join cdc_export.jobs j on j.id = listed.id
  join cdc_export.exports e on e.job = j.id
  where ($6::text[] is null or e.dataset = any ($6))
    and (e.status = 'failed' or e.status = 'completed' and e.published_at is not null)
)
select grouping(dataset) = 0 as is_dataset, coalesce(dataset, consumer_id) as name, hour,
  count(*) filter (where status = 'completed') as completed,
  count(*) filter (where status = 'failed') as failed,
  (coalesce(sum(rows_exported) filter (where status = 'completed'), 0))::bigint as rows
from counted
group by grouping sets ((consumer_id, hour), (dataset, hour))
-- Ad-hoc exports have no consumer.
having grouping(dataset) = 0 or consumer_id is not null
