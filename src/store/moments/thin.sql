-- store.moments.thin
-- Keeps each moment of the last ten minutes, the last one of ten seconds for a day, and of five minutes before that.
-- $1 float8: the age in seconds at which a moment is removed
-- $2 timestamptz: the present time; null: no clock is believed, and nothing is too old
delete from cdc_export.moments where (next_xid, at) in (
  select next_xid, at
  from (
    select next_xid, at, age.seconds,
      row_number() over (partition by bucket.number order by at desc) as place
    from cdc_export.moments
    cross join lateral (select extract(epoch from $2 - at) as seconds) age
    cross join lateral (
      select case
        when age.seconds < 600 then null
        when age.seconds < 86400 then floor(extract(epoch from at) / 10)
        else -floor(extract(epoch from at) / 300)
      end as number) bucket) all_moments
  where place > 1 and seconds >= 600 or seconds > $1
    -- A dump of another cluster, whose transactions were further on.
    or next_xid > pg_snapshot_xmax(pg_current_snapshot()))
