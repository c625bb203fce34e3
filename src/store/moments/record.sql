-- store.moments.record
-- Records the database's snapshot, if something was committed since the last moment that the change log may have.
-- $1 timestamptz: a time since that moment at which nothing was; null: none is known
-- $2 bigint: the change log's latest sequence, which was read before. A transaction has an id before it takes a number
insert into cdc_export.moments (at, since, snapshot, next_xid, log_sequence, open_xids)
select statement_timestamp(), greatest(coalesce($1, seen.at), last.at), pg_current_snapshot(),
  pg_snapshot_xmax(pg_current_snapshot()), log.sequence,
  case
    -- A snapshot lists no transaction that began after all those that have ended. Its id is between the snapshot's end
    -- and the id of this transaction. At most 10,000 ids are kept: savepoints may have taken many.
    when log.sequence is distinct from last.log_sequence then array(
      select pg_snapshot_xip(pg_current_snapshot())
      union all
      select xid::text::xid8
      from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as beyond) snapshot
      cross join generate_series(beyond, least(beyond + 9999, pg_current_xact_id()::text::bigint - 1)) xid)
    else array(
      select xid from unnest(last.open_xids) xid where not pg_visible_in_snapshot(xid, pg_current_snapshot()))
  end
from (select $2 as sequence) log
-- The moments until then are recorded, since a process looked. One that was killed may have looked for an hour more.
cross join (select max(d.seen_at) as at from cdc_export.destinations d where d.seen_at <= statement_timestamp()) seen
left join cdc_export.last_moment last on true
where coalesce(log.sequence <> last.log_sequence or last.is_past, true)
on conflict do nothing
