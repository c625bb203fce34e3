-- store.retention.files_past
-- Returns the files past the retention of files. The service of the database that made a file removes it.
-- $1 text[]: the consumers; the empty one has the ad-hoc exports
-- $2 bigint: the number of kept files of a consumer; null for no limit
-- $3 float8: the seconds for which a file is kept; null for no limit
-- $4 uuid: the destination
-- $5 bigint: the limit on returned files
-- $6 float8: the seconds for which an unacknowledged export is kept
-- $7 boolean: true for files of this database alone; here true
with bounds as (
  -- The newest file of each consumer that is past the retention: the first file beyond the count, or an age limit.
  select c.consumer_id, bound.finished_at, bound.id
  from unnest($1) as c (consumer_id)
  cross join lateral (
    select b.finished_at, b.id
    from (
      (select f.finished_at, f.id
       from exports f
       where $2 is not null and f.destination_id = $4 and coalesce(f.consumer_id, '') = c.consumer_id
         and f.status = 'completed' and f.published_at is not null and f.file_removed_at is null
       order by f.finished_at desc, f.id desc
       offset $2 limit 1)
      union all
      select clock_timestamp() - make_interval(secs => $3), '00000000-0000-0000-0000-000000000000'::uuid
      where $3 is not null) b
    order by b.finished_at desc, b.id desc
    limit 1) bound
)
select
  -- include files/columns.sql
  ,
  (select e.number from cdc_export.lanes l
   where l.consumer_id = e.consumer_id and l.dataset = e.dataset and e.number > l.acknowledged) as unacknowledged
-- include retention/files_in_bounds.sql
