-- True if something may have been committed since the last moment that the change log has. A transaction under way then
-- may have written before it.
log.sequence is distinct from last.log_sequence
or exists (select from unnest(last.open_xids) xid where pg_visible_in_snapshot(xid, pg_current_snapshot()))
