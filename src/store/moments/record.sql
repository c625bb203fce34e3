-- store.moments.record
-- Records the database's snapshot, if something was committed since the last moment that the change log may have.
-- $1 timestamptz: a time since that moment at which nothing was; null: none is known
-- $2 bigint: the change log's latest sequence, which was read before. A transaction that takes a number has its id
--    already
insert into cdc_export.moments (at, since, snapshot, next_xid, log_sequence, open_xids)
select statement_timestamp(), greatest(coalesce($1, seen.at), last.at), pg_current_snapshot(),
  pg_snapshot_xmax(pg_current_snapshot()), log.sequence,
  case
    -- A snapshot doesn't list the transactions that began after the last one that has ended. Their ids are before this
    -- transaction's. One that has many ids, for its savepoints, may be cut off.
    when log.sequence is distinct from last.log_sequence then array(
      select pg_snapshot_xip(pg_current_snapshot())
      union all (
        select xid::text::xid8
        from generate_series(pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
          pg_current_xact_id()::text::bigint - 1) xid
        limit 10000))
    else array(
      select xid from unnest(last.open_xids) xid where not pg_visible_in_snapshot(xid, pg_current_snapshot()))
  end
from (select $2 as sequence) log
-- The moments until then are recorded, since a process looked. One that was killed may have looked for an hour more.
cross join (select max(d.seen_at) as at from cdc_export.destinations d where d.seen_at <= statement_timestamp()) seen
left join
  -- include moments/latest.sql
on true
where
  -- include moments/moved.sql
on conflict do nothing
