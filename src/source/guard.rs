//! The guard of continuity: whether what changed since a consumer's position can be told exactly, and if not, why.
//!
//! Three pieces of SQL that every statement about a position shares. They speak of `t`, the table's row of `pg_class`, `n`, its
//! schema's, `c`, the row of `pg_control_system()`, `wanted`, what the catalog says of it and what its columns are, and `w`, the
//! consumer's row of `watermarks`, all null where it has none.
//!
//! `offset 0` keeps Postgres from putting a piece's text wherever a statement speaks of one of its columns: planned so, it took six
//! times as long as it runs.

pub(crate) mod columns;
pub(crate) mod triggers;

/// As a lateral subquery: what there is to compare a position with.
macro_rules! here {
    () => {
        concat!(
            "(select pg_current_snapshot() as snapshot, pg_relation_filenode(t.oid) as relfilenode, capture.logged_key, capture.captured,
               (select md5(string_agg(format('%s %s %s', a.attname, a.atttypid, a.atttypmod), ',' order by a.attnum))
                from pg_attribute a where a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped) as columns_hash,
               -- Whatever else is compared, by name.
               jsonb_build_object(
                 'database', (select d.oid::text from pg_database d where d.datname = current_database()),
                 'timeline', cdc_export.timeline(),
                 'captured', capture.captured, 'relations', capture.relations, 'functions', capture.functions,
                 'touches', ",
            $crate::source::guard::triggers::touches!(),
            ") as guard_state
             from ",
            $crate::source::captured::capture!(),
            " capture
             offset 0)"
        )
    };
}
pub(crate) use here;

/// As a lateral subquery: what the folder's marker of the lane says of the database. With `lane`, consumer and dataset, and `m`, job
/// and sha256 of its marker, null where there is none, and `is_asked`: the caller has said what it loaded last, and that was so.
///
/// WAL survives as a prefix. All that an export saw was committed before its own completion: where the last one that was handed out
/// is known as completed, nothing that was handed out is lost, whatever became of the server. An older one that is known says nothing of
/// those since, whose files may be elsewhere. A part of the statement that reads the position, though the jobs are the store's: asked in
/// a statement of its own, it would see another moment than the position, and give an answer that doesn't go with it.
macro_rules! witness {
    () => {
        "(select coalesce(m.is_asked, false) or coalesce(m.job = last.id and m.sha256 = last.sha256, false) as vouches,
            not coalesce(m.is_asked, false) and m.job is not null and not exists (
              select from exports e
              where e.id = m.job and e.consumer_id = lane.consumer_id and e.dataset = lane.dataset
                and (e.status = 'completed' and e.sha256 = m.sha256 or e.error_code = 'file_lost')) as denies
          from (select) one
          left join lateral (
            select e.id, e.sha256 from exports e
            where e.consumer_id = lane.consumer_id and e.dataset = lane.dataset and e.status = 'completed'
            order by e.lane_sequence desc limit 1) last on true
          offset 0)"
    };
}
pub(crate) use witness;

/// The guard's word: what keeps an export from going on from the position. `first` where there is no position yet, null where nothing
/// keeps it. The order is that of precedence. With `here` and `witness` being the other pieces.
macro_rules! continuity {
    () => {
        concat!(
            "case
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
               when w.guard_state ->> 'time' <> wanted.guard_state ->> 'time' or ",
            $crate::source::guard::columns::column_missed!(),
            " then 'dataset_changed' end
           when w.log_lost = 'all' then 'log_expired'
           when w.live_snapshot is null then 'no_snapshot'
           when w.last_exported_at > w.saved_last_exported_at or w.saved_last_exported_at is null and w.last_exported_at is not null then 'watermark_edited'
           when w.table_oid is distinct from t.oid then 'table_recreated'
           when w.cluster_id is distinct from c.system_identifier then 'other_cluster'
           when pg_snapshot_xmax(w.live_snapshot) > pg_snapshot_xmax(here.snapshot) then 'xid_went_back'
           when ",
            $crate::source::guard::columns::column_retyped!(),
            " then 'column_retyped'
           when ",
            $crate::source::guard::columns::column_missed!(),
            " then 'dataset_changed'
           when not here.captured then 'trigger_missing'
           -- One that came is looked at by itself: what it has may all have been logged.
           when w.guard_state -> 'relations' <> here.guard_state -> 'relations' and exists (
             select from jsonb_object_keys(w.guard_state -> 'relations') was where not here.guard_state -> 'relations' ? was)
             then 'partitions_changed'
           when ",
            $crate::source::guard::triggers::touched!(),
            " then 'partitions_changed'
           when ",
            $crate::source::guard::triggers::triggers_changed!(),
            " then 'trigger_changed'
           when w.log_lost = 'deletions' then 'deletes_expired'
           when ",
            $crate::source::guard::triggers::truncated!(),
            " then 'truncated'
           when w.last_exported_at < w.saved_last_exported_at or w.last_exported_at is null and w.saved_last_exported_at is not null then 'rewound'
         end"
        )
    };
}
pub(crate) use continuity;
