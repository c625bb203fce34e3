-- store.moments.record
-- Records the database's snapshot, if something was committed since the last moment that the change log may have.
-- $1 timestamptz: a time since that moment at which nothing was; null: none is known
insert into cdc_export.moments (at, since, snapshot, next_xid, log_sequence, open_xids)
select statement_timestamp(), $1, pg_current_snapshot(), pg_snapshot_xmax(pg_current_snapshot()), log.sequence,
  case
    when log.sequence is distinct from last.log_sequence then array(select pg_snapshot_xip(pg_current_snapshot()))
    else array(
      select xid from unnest(last.open_xids) xid where not pg_visible_in_snapshot(xid, pg_current_snapshot()))
  end
from
  -- include moments/latest.sql
where
  -- include moments/moved.sql
on conflict do nothing
