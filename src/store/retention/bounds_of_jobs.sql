-- A CTE for the consumers $1: `bounds` has the newest ended job of each consumer that is past the retention. It is the
-- first job beyond the count $2, or the time $3 seconds ago. Older jobs are past the retention, too.
with bounds as (
  select c.consumer_id, bound.finished_at, bound.id
  from unnest($1) as c (consumer_id)
  cross join lateral (
    select b.finished_at, b.id
    from (
      (select f.finished_at, f.id
       from exports f
       where $2 is not null and coalesce(f.consumer_id, '') = c.consumer_id and f.finished_at is not null
       order by f.finished_at desc, f.id desc
       offset $2 limit 1)
      union all
      select clock_timestamp() - make_interval(secs => $3), '00000000-0000-0000-0000-000000000000'::uuid
      where $3 is not null) b
    order by b.finished_at desc, b.id desc
    limit 1) bound
)
