-- store.retention.files_past
-- Returns the files past the retention of files. The service of the database that made a file removes it.
-- $1 text[]: the consumers of the lanes; the empty one has the ad-hoc exports
-- $2 text[]: their datasets
-- $3 bigint: the number of kept files of a lane; null for no limit
-- $4 float8: the seconds for which a file is kept; null for no limit
-- $5 timestamptz: the present time; null: no clock is believed, and nothing is too old
-- $6 uuid: the destination
-- $7 bigint: the limit on returned files
-- $8 float8: the seconds for which an unacknowledged export is kept
-- $9 boolean: true for files of this database alone; here true
with bounds as (
  -- The newest file of each lane that is past the retention: the first file beyond the count, or an age limit.
  select l.consumer_id, l.dataset, bound.finished_at, bound.job
  from unnest($1, $2) as l (consumer_id, dataset)
  cross join lateral (
    select b.finished_at, b.job
    from (
      (select f.finished_at, f.job
       from cdc_export.exports f
       where $3 is not null and f.destination_id = $6 and coalesce(f.consumer_id, '') = l.consumer_id
         and f.dataset = l.dataset and f.published_at is not null and f.file_removed_at is null
       order by f.finished_at desc, f.job desc
       offset $3 limit 1)
      union all
      select $5 - make_interval(secs => $4), '00000000-0000-0000-0000-000000000000'::uuid
      where $4 is not null and $5 is not null) b
    order by b.finished_at desc, b.job desc
    limit 1) bound
)
select
  -- include files/columns.sql
  ,
  case when e.number > e.acknowledged then e.number end as unacknowledged
-- include retention/files_in_bounds.sql
