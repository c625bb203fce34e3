-- store.lists.jobs
-- Returns a page of jobs, newest first, merged from the lists of several keys. The piece `key` is the expression of an
-- index, made of the fields that the filter names. Most lists contribute few entries to a page, so this reads each list
-- in three steps.
-- $1 text[]: the keys
-- $2 timestamptz: the time of the job before the page
-- $3 uuid: the id of that job
-- $4 bigint: the size of the page
-- $5 bigint: the limit on entries of each list in the first step
-- $6 bigint: the limit on entries of each list in the second step
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
-- The last entry of the page after the first step. Has no row if the page isn't full.
first_end as materialized (
  select created_at, id from first order by created_at desc, id desc offset $4 - 1 limit 1
),
-- Reads on in a list if its last entry from the first step is on the page.
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
