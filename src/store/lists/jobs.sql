-- store.lists.jobs
-- Returns a page of jobs, newest first, merged from the lists of several keys. The piece `list` has the ids and keys of
-- an index, which are made of the fields that the filter names. A job may be in several lists.
-- $1 text[]: the keys
-- $2 uuid: the job before the page
-- $3 bigint: the limit on jobs
-- $4 bigint: the limit on exports: a further job is on the page if the jobs before have fewer
with page as (
  select distinct next.id
  from unnest($1) as k (key)
  cross join lateral (
    select l.id
    from (
      -- include list
    ) l
    -- The index of the keys alone has this order, so Postgres can't pass over everybody else's jobs in another one.
    where (l.key, l.id) >= (k.key, '00000000-0000-0000-0000-000000000000') and (l.key, l.id) < (k.key, $2)
    order by l.key desc, l.id desc
    limit $3) next
  order by next.id desc
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
