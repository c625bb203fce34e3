-- store.lists.jobs
-- Returns a page of jobs, newest first, merged out of the lists of several keys. The piece `key` is the expression that
-- an index has: its text has the fields that the filter names. Most lists end or leave the page early, so each is read
-- in three steps.
-- $1 text[]: the keys
-- $2 timestamptz: the time of the job before the page
-- $3 uuid: the id of that job
-- $4 bigint: the size of the page
-- $5 bigint: how many entries of each list the first step reads
-- $6 bigint: how many entries the second step reads
with first as materialized (
  select k.key, next.created_at, next.id, next.place
  from unnest($1) as k (key)
  cross join lateral (
    select e.created_at, e.id, row_number() over (order by e.created_at desc, e.id desc) as place
    from exports e
    where
      -- include key
      = k.key and (e.created_at, e.id) < ($2, $3)
    order by e.created_at desc, e.id desc
    limit $5) next
),
-- The last entry of the page as far as it is known; no row as long as the page isn't full.
first_end as materialized (
  select created_at, id from first order by created_at desc, id desc offset $4 - 1 limit 1
),
-- A list goes on if the last entry that was read of it is on the page.
second as materialized (
  select k.key, next.created_at, next.id, next.place
  from first k
  cross join lateral (
    select e.created_at, e.id, row_number() over (order by e.created_at desc, e.id desc) as place
    from exports e
    where
      -- include key
      = k.key and (e.created_at, e.id) < (k.created_at, k.id)
    order by e.created_at desc, e.id desc
    limit $6) next
  where k.place = $5
    and not exists (select from first_end l where (k.created_at, k.id) < (l.created_at, l.id))
),
second_end as materialized (
  select created_at, id
  from (select created_at, id from first union all select created_at, id from second) read
  order by created_at desc, id desc offset $4 - 1 limit 1
),
-- The third step reads as many entries as the page has.
third as materialized (
  select next.created_at, next.id
  from second k
  cross join lateral (
    select e.created_at, e.id
    from exports e
    where
      -- include key
      = k.key and (e.created_at, e.id) < (k.created_at, k.id)
    order by e.created_at desc, e.id desc
    limit $4) next
  where k.place = $6
    and not exists (select from second_end l where (k.created_at, k.id) < (l.created_at, l.id))
),
page as (
  select id
  from (
    select created_at, id from first
    union all select created_at, id from second
    union all select created_at, id from third) read
  order by created_at desc, id desc
  limit $4
)
select
  -- include job_columns.sql
from page
join exports e on e.id = page.id
order by e.created_at desc, e.id desc
