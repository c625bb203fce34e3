-- A CTE for the lanes of the consumers $1 and datasets $2: `bounds` has the newest ended job of each lane that is past
-- the retention. It is the first job beyond the count $3, or the time $4 seconds ago. Older jobs are past it, too.
with bounds as (
  select l.consumer_id, l.dataset, bound.finished_at, bound.id
  from unnest($1, $2) as l (consumer_id, dataset)
  cross join lateral (
    select b.finished_at, b.id
    from (
      (select f.finished_at, f.id
       from exports f
       where $3 is not null and coalesce(f.consumer_id, '') = l.consumer_id and f.dataset = l.dataset
         and f.finished_at is not null
       order by f.finished_at desc, f.id desc
       offset $3 limit 1)
      union all
      select clock_timestamp() - make_interval(secs => $4), '00000000-0000-0000-0000-000000000000'::uuid
      where $4 is not null) b
    order by b.finished_at desc, b.id desc
    limit 1) bound
)
