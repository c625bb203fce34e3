-- The guard of continuity: for each lane, the reason why an export can't go on from the lane's position.
--
-- Four other places of `source` decide a word: `opening::opened` and `LagRow::lag` return `trigger_missing` for a table
-- whose changes aren't captured, `reading` returns `partitions_changed` for new partitions with unlogged rows, and
-- `Rows::explained` returns `column_retyped` for logged keys that aren't values of the columns' types any more.
--
-- A list of CTEs, to be included after
--   target   the table, one row
--   capture  its capture (captured.sql)
--   wanted   what the catalog says: by_triggers, definition, types, guard_state
--   lanes    consumer_id and dataset, confirms and contradicts; `LaneEvidence` describes the latter two

-- Traces of times at which rows may have been written without firing the triggers.
-- Plain table: one object for each column, by its number. If the table was a child or a partition for a while, both the
-- attaching and the detaching touched its columns.
-- Partitioned table: one object for each partition, by its oid. Renaming a key column touches it in all partitions.
-- `touch` is the xmin of the column's catalog row, and a hash of that row. If the hash changed too, the change of the
-- column explains the touch. Nothing explains a touch of a key column, so a key column has no hash.
, touches (object, touch) as (
  select a.attnum::text,
    case
      when a.attname::text = any (capture.logged_key) then jsonb_build_array(a.xmin::text)
      else jsonb_build_array(a.xmin::text, hashtext(format('%s %s %s %s %s %s %s %s %s %s %s %s %s',
        a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.attidentity, a.atthasmissing, a.attstattarget, a.attstorage,
        a.attacl, a.attoptions, d.oid, a.attcollation,
        -- Postgres has this column since 14.
        to_jsonb(a) ->> 'attcompression') collate "C"))
    end
  from target
  cross join capture
  join pg_attribute a on a.attrelid = target.oid
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  where target.relkind = 'r' and a.attnum > 0 and not a.attisdropped
  union all
  select partition.oid, jsonb_build_array(string_agg(a.xmin::text, ',' order by a.attnum))
  from target
  cross join capture
  cross join lateral jsonb_object_keys(capture.relations) partition (oid)
  join pg_attribute a on a.attrelid = partition.oid::oid and a.attname = any (capture.logged_key::name[])
  -- Attaching the root to another table touches only the root. While it is attached, `captured` is false.
  where target.relkind = 'p' and partition.oid <> target.oid::text
  group by partition.oid),

-- The state of the table and of the database now.
current_state as materialized (
  select pg_current_snapshot() as snapshot, cluster.system_identifier as cluster_id,
    pg_relation_filenode(target.oid) as relfilenode, capture.logged_key, capture.captured,
    (select md5(string_agg(format('%s %s %s', a.attname, a.atttypid, a.atttypmod), ',' order by a.attnum))
     from pg_attribute a
     where a.attrelid = target.oid and a.attnum > 0 and not a.attisdropped) as table_columns_hash,
    -- Everything else that is compared, by name.
    jsonb_build_object(
      'database', (select d.oid::text from pg_database d where d.datname = current_database()),
      'timeline', cdc_export.timeline(),
      'mask_secret', (select m.fingerprint from cdc_export.mask_secret m),
      'captured', capture.captured, 'relations', capture.relations, 'functions', capture.functions,
      -- A partitioned table may have no partition.
      'touches', (select coalesce(jsonb_object_agg(touches.object, touches.touch), '{}') from touches)) as guard_state
  from target
  cross join capture
  cross join pg_control_system() cluster),

-- The reason in the order of precedence: `first` if there is no position yet, null if an export can go on.
-- Each difference is computed only if the CASE gets to it. Of two objects only members that both have are compared.
verdict as materialized (
  select lane.consumer_id, lane.dataset,
    case
      when w.consumer_id is null and not lane.contradicts then 'first'
      when w.file_lost then 'file_lost'
      when lane.contradicts then 'database_restored'
      when w.definition_hash <> md5(wanted.definition) then 'dataset_changed'
      when w.guard_state ->> 'filter' <> wanted.guard_state ->> 'filter' then 'dataset_changed'
      when w.guard_state ->> 'folded' <> wanted.guard_state ->> 'folded' then 'dataset_changed'
      when wanted.guard_state ? 'needs_secret'
        and w.guard_state ->> 'mask_secret' <> now.guard_state ->> 'mask_secret' then 'dataset_changed'
      when difference.is_other_database then 'database_restored'
      when not wanted.by_triggers then
        case
          when w.cluster_id <> now.cluster_id then 'other_cluster'
          when w.table_oid <> target.oid then 'table_recreated' -- null if somebody set the time by hand
          when w.guard_state ->> 'time' <> wanted.guard_state ->> 'time' then 'dataset_changed'
          when difference.sends_old_column or difference.reuses_name then 'dataset_changed'
        end
      when w.log_lost = 'all' then 'log_expired'
      when w.live_snapshot is null then 'no_snapshot'
      when w.last_exported_at > w.saved_last_exported_at
        or w.saved_last_exported_at is null and w.last_exported_at is not null then 'watermark_edited'
      when w.table_oid is distinct from target.oid then 'table_recreated'
      when w.cluster_id is distinct from now.cluster_id then 'other_cluster'
      when pg_snapshot_xmax(w.live_snapshot) > pg_snapshot_xmax(now.snapshot) then 'xid_went_back'
      when difference.has_other_types or difference.has_other_numbers or difference.has_other_parts
        or difference.is_rewritten and difference.has_other_versions then 'column_retyped'
      when difference.sends_old_column or difference.reuses_name then 'dataset_changed'
      when not now.captured then 'trigger_missing'
      when difference.lacks_partition then 'partitions_changed'
      when difference.has_unexplained_touch then 'partitions_changed'
      when difference.has_other_triggers then 'trigger_changed'
      when w.log_lost = 'deletions' then 'deletes_expired'
      when difference.is_truncated then 'truncated'
      when w.last_exported_at < w.saved_last_exported_at
        or w.last_exported_at is null and w.saved_last_exported_at is not null then 'rewound'
    end as continuity
  from lanes lane
  cross join target
  cross join current_state now
  cross join wanted
  left join watermarks w on w.consumer_id = lane.consumer_id and w.dataset = lane.dataset
  cross join lateral (
    select
      -- A copy of a database has its tables' oids, and in the same cluster the cluster's identifier. Another timeline
      -- is a failover or a recovery, which has lost nothing if the destination confirms that.
      w.cluster_id = now.cluster_id and (w.guard_state ->> 'database' <> now.guard_state ->> 'database'
        or w.guard_state ->> 'timeline' <> now.guard_state ->> 'timeline' and not lane.confirms)
        as is_other_database,

      -- The files have a column that the table had before and the files did not have: a consumer lacks its values in
      -- all rows that don't change.
      not (w.guard_state -> 'sent') @> (wanted.guard_state -> 'sent') and exists (
        select from jsonb_array_elements_text(wanted.guard_state -> 'sent') sent (number)
        where sent.number::int <= (w.guard_state ->> 'width')::int
          and not (w.guard_state -> 'sent') ? sent.number) as sends_old_column,

      -- A name in the files passed to another column: rows that don't change keep the values of the one before.
      not (w.guard_state -> 'files') || (wanted.guard_state -> 'files') @> (w.guard_state -> 'files') as reuses_name,

      -- A column's values may differ from the delivered and logged ones, because its type, its number, or a part of its
      -- type (a label, an attribute) or its expression changed.
      not w.column_types || wanted.types @> w.column_types as has_other_types,
      not (w.guard_state -> 'numbers') || (wanted.guard_state -> 'numbers')
        @> (w.guard_state -> 'numbers') as has_other_numbers,
      not (w.guard_state -> 'parts') || (wanted.guard_state -> 'parts')
        @> (w.guard_state -> 'parts') as has_other_parts,

      -- Another catalog row of a column matters only if the table was rewritten too: GRANT and a wider `varchar` also
      -- change the row. A partitioned table has no file; ALTER TABLE rewrites the files of all its partitions.
      w.relfilenode <> now.relfilenode
        or target.relkind = 'p' and w.guard_state -> 'relations' <> now.guard_state -> 'relations' and (
          select bool_and(was.value ->> 2 <> now.guard_state -> 'relations' -> was.key ->> 2)
          from jsonb_each(w.guard_state -> 'relations') was
          where was.value ->> 2 <> '0') as is_rewritten,
      not (w.guard_state -> 'versions') || (wanted.guard_state -> 'versions')
        @> (w.guard_state -> 'versions') as has_other_versions,

      -- A partition was removed. `source::arrivals` checks new partitions, because all of their rows may have been
      -- logged.
      w.guard_state -> 'relations' <> now.guard_state -> 'relations' and exists (
        select from jsonb_object_keys(w.guard_state -> 'relations') was
        where not now.guard_state -> 'relations' ? was) as lacks_partition,

      -- Something was touched since the position was saved, and no other change explains it.
      w.guard_state -> 'touches' <> now.guard_state -> 'touches' and exists (
        -- A position of before may have none.
        select from jsonb_each(coalesce(nullif(w.guard_state -> 'touches', 'null'), '{}')) was
        join jsonb_each(now.guard_state -> 'touches') is_now using (key)
        where was.value -> 0 <> is_now.value -> 0
          and was.value -> 1 is not distinct from is_now.value -> 1) as has_unexplained_touch,

      -- A trigger or a function was dropped, disabled or replaced since the position was saved, or before. The position
      -- has no facts about later partitions. `renewed` maps saved stamps to the stamps of replacements that the service
      -- itself made.
      case
        when w.guard_state -> 'captured' = 'false' then true
        when w.guard_state ->> 'functions' <> now.guard_state ->> 'functions' and coalesce(
          (select k.renewed ->> (w.guard_state ->> 'functions')
           from cdc_export.tracked k
           where k.renewed ? (w.guard_state ->> 'functions') limit 1),
          w.guard_state ->> 'functions') <> now.guard_state ->> 'functions' then true
        else w.guard_state -> 'relations' <> now.guard_state -> 'relations' and exists (
          select from jsonb_each(w.guard_state -> 'relations') was
          where was.value ->> 0 is distinct from now.guard_state -> 'relations' -> was.key ->> 0 and coalesce(
            (select k.renewed ->> (was.value ->> 0)
             from cdc_export.tracked k
             where k.renewed ? (was.value ->> 0) limit 1),
            was.value ->> 0) is distinct from now.guard_state -> 'relations' -> was.key ->> 0)
      end as has_other_triggers,

      -- The table or a partition was truncated. The log has each TRUNCATE since the position of deletions was saved. An
      -- incremental export saves `truncated` in the position. A partition that had no trigger for TRUNCATE all the time
      -- counts as truncated if it has another file.
      exists (
          select from cdc_export.change_log l
          where l.table_oid = target.oid and l.key is null and l.operation = 'T'
            and (l.xid >= pg_snapshot_xmax(w.deletions_snapshot)
              or l.xid = any (array(select pg_snapshot_xip(w.deletions_snapshot)))))
        or w.guard_state -> 'truncated' = 'true'
        or w.guard_state -> 'relations' <> now.guard_state -> 'relations' and exists (
          select from jsonb_each(w.guard_state -> 'relations') was
          cross join lateral (select now.guard_state -> 'relations' -> was.key as value) is_now
          where was.value ->> 2 <> is_now.value ->> 2
            and (was.value ->> 1 <> is_now.value ->> 1) is distinct from false) as is_truncated) difference)
