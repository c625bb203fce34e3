-- store.activity.hours
-- Counts the completed and failed jobs of each consumer and of each dataset in each hour since a time. The piece `key`
-- is the expression of an index, as in store.lists.jobs. The hours are numbered from 0.
-- $1 text[]: the keys
-- $2 timestamptz: the beginning of the first hour
-- $3 integer: the number of hours. Jobs that are newer by another clock count in the last hour
-- $4 bigint: the limit on jobs of each list
with counted as (
  select next.*
  from unnest($1) as k (key)
  cross join lateral (
    select e.consumer_id, e.dataset, e.status, e.rows_exported,
      least(floor(extract(epoch from e.created_at - $2) / 3600)::integer, $3 - 1) as hour
    from exports e
    where
      -- include key
      = k.key and e.created_at >= $2
    order by e.created_at desc, e.id desc
    limit $4) next
)
select grouping(dataset) = 0 as is_dataset, coalesce(dataset, consumer_id) as name, hour,
  count(*) filter (where status = 'completed') as completed,
  count(*) filter (where status = 'failed') as failed,
  (coalesce(sum(rows_exported) filter (where status = 'completed'), 0))::bigint as rows
from counted
group by grouping sets ((consumer_id, hour), (dataset, hour))
-- Ad-hoc exports have no consumer.
having grouping(dataset) = 0 or consumer_id is not null
