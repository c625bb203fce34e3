-- store.lists.jobs
-- Returns a page of jobs, newest first, merged from the lists of several keys. The piece `list` has the ids and keys of
-- an index, which are made of the fields that the filter names. Most lists contribute few entries to a page, so this
-- reads each list in three steps. A job may be in several lists.
-- $1 text[]: the keys
-- $2 uuid: the job before the page
-- $3 bigint: the limit on jobs
-- $4 bigint: the limit on exports: a further job is on the page if the jobs before have fewer
-- $5 bigint: the limit on entries of each list in the first step
-- $6 bigint: the limit on entries of each list in the second step
with first as materialized (
  select k.key, next.id, next.place
  from unnest($1) as k (key)
  cross join lateral (
    select l.id, row_number() over (order by l.id desc) as place
    from (
      -- include list
    ) l
    where l.key = k.key and l.id < $2
    order by l.id desc
    limit $5) next
),
-- The last entry of the page after the first step. Has no row if the page isn't full.
first_end as materialized (
  select distinct id from first order by id desc offset $3 - 1 limit 1
),
-- Reads on in a list if its last entry from the first step is on the page.
second as materialized (
  select k.key, next.id, next.place
  from first k
  cross join lateral (
    select l.id, row_number() over (order by l.id desc) as place
    from (
      -- include list
    ) l
    where l.key = k.key and l.id < k.id
    order by l.id desc
    limit $6) next
  where k.place = $5 and not exists (select from first_end l where k.id < l.id)
),
second_end as materialized (
  select id from (select id from first union select id from second) read order by id desc offset $3 - 1 limit 1
),
-- The third step reads as many entries as the page has.
third as materialized (
  select next.id
  from second k
  cross join lateral (
    select l.id
    from (
      -- include list
    ) l
    where l.key = k.key and l.id < k.id
    order by l.id desc
    limit $3) next
  where k.place = $6 and not exists (select from second_end l where k.id < l.id)
),
page as (
  select id
  from (select id from first union select id from second union select id from third) read
  order by id desc
  limit $3
),
sized as materialized (
  select page.id, sum(own.exports) over (order by page.id desc) - own.exports as exports_before
  from page
  cross join lateral (select count(*) as exports from cdc_export.exports e where e.job = page.id) own
)
select
  -- include job_columns.sql
from sized
join cdc_export.jobs j on j.id = sized.id
join cdc_export.exports e on e.job = j.id
where sized.exports_before < $4
order by e.job desc, e.dataset
