-- A CTE for the lanes of the consumers $1 and datasets $2: `bounds` has the newest ended export of each lane that is
-- past the retention of jobs. It is the first one beyond the count $3, or the time $4 seconds before $5. Older ones are
-- past it, too.
with bounds as (
  select l.consumer_id, l.dataset, bound.finished_at, bound.job
  from unnest($1, $2) as l (consumer_id, dataset)
  cross join lateral (
    select b.finished_at, b.job
    from (
      (select f.finished_at, f.job
       from cdc_export.exports f
       where $3 is not null and coalesce(f.consumer_id, '') = l.consumer_id and f.dataset = l.dataset
         and f.finished_at is not null
       order by f.finished_at desc, f.job desc
       offset $3 limit 1)
      union all
      select $5 - make_interval(secs => $4), '00000000-0000-0000-0000-000000000000'::uuid
      where $4 is not null and $5 is not null) b
    order by b.finished_at desc, b.job desc
    limit 1) bound
)
