-- The guard's word: the reason why an export can't go on from the position; `first` if there is no position yet, null if there is
-- no reason. The order is that of precedence.
case
  when w.consumer_id is null and not witness.denies then 'first'
  when w.file_lost then 'file_lost'
  when witness.denies then 'database_restored'
  when w.definition_hash <> md5(wanted.definition) then 'dataset_changed'
  when w.guard_state ->> 'filter' <> wanted.guard_state ->> 'filter' then 'dataset_changed'
  -- A copy of a database has its tables' oids, and its cluster's identifier where that is the same. Another timeline is
  -- a failover or a recovery, which has lost nothing where the lane's marker says so.
  when w.cluster_id = c.system_identifier and (w.guard_state ->> 'database' <> here.guard_state ->> 'database'
    or w.guard_state ->> 'timeline' <> here.guard_state ->> 'timeline' and not witness.vouches) then 'database_restored'
  when not wanted.by_triggers then
    case
      when w.cluster_id <> c.system_identifier then 'other_cluster'
      -- Null where somebody set the time by hand.
      when w.table_oid <> t.oid then 'table_recreated'
      when w.guard_state ->> 'time' <> wanted.guard_state ->> 'time'
        -- The files have a column that the table had before, and the files did not: whoever loads them lacks its values in all
        -- rows that don't change.
        or (not (w.guard_state -> 'sent') @> (wanted.guard_state -> 'sent') and exists (
          select from jsonb_array_elements_text(wanted.guard_state -> 'sent') sent (number)
          where sent.number::int <= (w.guard_state ->> 'width')::int and not (w.guard_state -> 'sent') ? sent.number))
        then 'dataset_changed' end
  when w.log_lost = 'all' then 'log_expired'
  when w.live_snapshot is null then 'no_snapshot'
  when w.last_exported_at > w.saved_last_exported_at or w.saved_last_exported_at is null and w.last_exported_at is not null then 'watermark_edited'
  when w.table_oid is distinct from t.oid then 'table_recreated'
  when w.cluster_id is distinct from c.system_identifier then 'other_cluster'
  when pg_snapshot_xmax(w.live_snapshot) > pg_snapshot_xmax(here.snapshot) then 'xid_went_back'
  -- A column has other values than those that were delivered and logged since: two objects say otherwise of something that both
  -- know. What one of them lacks is new, or of no interest any more.
  when ((w.column_types <> wanted.types and exists (
      select from jsonb_each_text(w.column_types) was join jsonb_each_text(wanted.types) now using (key) where was.value <> now.value))
    or ((w.guard_state -> 'numbers') <> (wanted.guard_state -> 'numbers') and exists (
      select from jsonb_each_text((w.guard_state -> 'numbers')) was join jsonb_each_text((wanted.guard_state -> 'numbers')) now using (key)
      where was.value <> now.value))
    or ((w.guard_state -> 'parts') <> (wanted.guard_state -> 'parts') and exists (
      select from jsonb_each_text((w.guard_state -> 'parts')) was join jsonb_each_text((wanted.guard_state -> 'parts')) now using (key)
      where was.value <> now.value))
    -- Another catalog row of a column matters only beside a table that was rewritten: a GRANT changes it too, as a wider
    -- `varchar` does.
    or (w.relfilenode <> here.relfilenode
        -- A partitioned table has no file, its partitions have: an ALTER TABLE rewrites all of them.
        or t.relkind = 'p' and w.guard_state -> 'relations' <> here.guard_state -> 'relations' and (
          select bool_and(was.value ->> 2 <> here.guard_state -> 'relations' -> was.key ->> 2)
          from jsonb_each(w.guard_state -> 'relations') was where was.value ->> 2 <> '0'))
      and ((w.guard_state -> 'versions') <> (wanted.guard_state -> 'versions') and exists (
        select from jsonb_each_text((w.guard_state -> 'versions')) was join jsonb_each_text((wanted.guard_state -> 'versions')) now using (key)
        where was.value <> now.value))) then 'column_retyped'
  -- The same as above.
  when (not (w.guard_state -> 'sent') @> (wanted.guard_state -> 'sent') and exists (
    select from jsonb_array_elements_text(wanted.guard_state -> 'sent') sent (number)
    where sent.number::int <= (w.guard_state ->> 'width')::int and not (w.guard_state -> 'sent') ? sent.number)) then 'dataset_changed'
  when not here.captured then 'trigger_missing'
  -- One that came is looked at by itself: what it has may all have been logged.
  when w.guard_state -> 'relations' <> here.guard_state -> 'relations' and exists (
    select from jsonb_object_keys(w.guard_state -> 'relations') was where not here.guard_state -> 'relations' ? was)
    then 'partitions_changed'
  -- Something was touched since the position was saved, and no other change explains it. What one of the two lacks came or went.
  when (w.guard_state -> 'touches' <> here.guard_state -> 'touches' and exists (
    select from jsonb_each(w.guard_state -> 'touches') was join jsonb_each(here.guard_state -> 'touches') now using (key)
    where was.value -> 0 <> now.value -> 0 and was.value -> 1 is not distinct from now.value -> 1)) then 'partitions_changed'
  -- A trigger or a function was dropped, disabled or replaced since the position was saved, or was already then. Of a partition
  -- that came since, nothing is saved. `renewed` has the stamps of what the service itself put in the place of saved ones.
  when case
    when w.guard_state -> 'captured' = 'false' then true
    when w.guard_state ->> 'functions' <> here.guard_state ->> 'functions' and coalesce(
      (select k.renewed ->> (w.guard_state ->> 'functions') from cdc_export.tracked k where k.renewed ? (w.guard_state ->> 'functions') limit 1),
      w.guard_state ->> 'functions') <> here.guard_state ->> 'functions' then true
    else w.guard_state -> 'relations' <> here.guard_state -> 'relations' and exists (
      select from jsonb_each(w.guard_state -> 'relations') was
      where was.value ->> 0 is distinct from here.guard_state -> 'relations' -> was.key ->> 0 and coalesce(
        (select k.renewed ->> (was.value ->> 0) from cdc_export.tracked k where k.renewed ? (was.value ->> 0) limit 1),
        was.value ->> 0) is distinct from here.guard_state -> 'relations' -> was.key ->> 0)
  end then 'trigger_changed'
  when w.log_lost = 'deletions' then 'deletes_expired'
  -- The table or a partition of it was truncated since the position was saved: the log has it; or since the last delta or full
  -- export, whose position remembers the word; or its file is another one, and no trigger was there all the time to log it.
  when exists (
      select from cdc_export.change_log l
      where l.table_oid = t.oid and l.operation = 'T' and l.xid >= pg_snapshot_xmin(w.deletions_snapshot)
        and not pg_visible_in_snapshot(l.xid, w.deletions_snapshot))
    or w.guard_state -> 'truncated' = 'true'
    or w.guard_state -> 'relations' <> here.guard_state -> 'relations' and exists (
      select from jsonb_each(w.guard_state -> 'relations') was cross join lateral (select here.guard_state -> 'relations' -> was.key as value) now
      where was.value ->> 2 <> now.value ->> 2 and (was.value ->> 1 <> now.value ->> 1) is distinct from false) then 'truncated'
  when w.last_exported_at < w.saved_last_exported_at or w.last_exported_at is null and w.saved_last_exported_at is not null then 'rewound'
end
