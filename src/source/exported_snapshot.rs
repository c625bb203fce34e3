//! An exported snapshot, and what the statement that exports it says of the moment: the consumer's position, the guard's word, and what
//! the position after this export has to remember.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use sqlx::postgres::types::Oid;
use sqlx::types::Json;

use crate::dataset::{Capture, Dataset, TableSchema};
use crate::job::{Continuity, ExportType, JobId, SnapshotReport};
use crate::source::captured::capture;
use crate::source::snapshot::Purpose;
use crate::source::{Error, quote};
use crate::watermark::{Fingerprint, GuardState, NewPosition, Position};

/// What the statement tells.
#[derive(sqlx_macros::FromRow)]
pub(super) struct ExportedSnapshot {
    /// What readers import it by.
    pub(super) name: String,
    snapshot: String,
    taken_at: DateTime<Utc>,
    /// The database's encoding.
    pub(super) encoding: String,
    /// Whether the server is a standby.
    pub(super) standby: bool,
    /// The columns whose values the triggers log.
    pub(super) logged_key: Option<Vec<String>>,
    pub(super) captured: bool,
    /// Whether a value may be kept outside of its row.
    pub(super) toasted: bool,
    /// Of the table's file, if it has one.
    pub(super) blocks: Option<i64>,
    version: Option<i64>,
    last_exported_at: Option<DateTime<Utc>>,
    live_snapshot: Option<String>,
    deletions_snapshot: Option<String>,
    continuity: Option<String>,
    /// Whether the job was made before the database was put back or copied.
    pub(super) is_restored: bool,
    /// Partitions that the position doesn't know.
    pub(super) arrived: Vec<Oid>,
    table_rewritten: bool,
    quiet_deletes: i64,
    open_transactions: i32,
    oldest_transaction_seconds: Option<f64>,
    pub(super) table_oid: Oid,
    relfilenode: Option<Oid>,
    table_columns_hash: String,
    guard_state: Json<GuardState>,
    /// Since when the times tell deletions that the log doesn't have.
    deleted_since: Option<DateTime<Utc>>,
    /// The number of the column whose times the watermark is of; 0: of none alone.
    timed_by: Option<i64>,
    /// Whether the position was saved with the filter's functions as they are.
    pub(super) knows_filter: bool,
    cluster_id: i64,
}

impl ExportedSnapshot {
    /// Exports the snapshot of the leader's transaction. In one statement, so that the position, the guard and the snapshot are of one
    /// moment.
    pub(super) async fn take(
        leader: &mut PgConnection,
        purpose: &Purpose<'_>,
        dataset: &Dataset,
        schema: &TableSchema,
    ) -> Result<ExportedSnapshot, sqlx::Error> {
        let &Purpose { consumer, job, marker, .. } = purpose;
        sqlx::query_as(concat!(
            "-- source.snapshot.open
             select pg_export_snapshot() as name, here.snapshot::text as snapshot, statement_timestamp() as taken_at,
               current_setting('server_encoding') as encoding, pg_is_in_recovery() as standby, here.logged_key, here.captured,
               case when t.relkind = 'r' then pg_relation_size(t.oid) / current_setting('block_size')::bigint end as blocks,
               exists (
                 select from (select t.oid union all select relid from pg_partition_tree(t.oid)) parts (oid)
                 join pg_class part on part.oid = parts.oid
                 where part.reltoastrelid <> 0 and pg_relation_size(part.reltoastrelid) > 0) as toasted,
               w.version, w.last_exported_at, w.live_snapshot::text, w.deletions_snapshot::text, ",
            include_str!("guard/continuity.sql"),
            " as continuity,
               coalesce(j.database_id <> cdc_export.database_id(), false) or coalesce(m.job = j.id, false)
                 or coalesce(j.timeline <> cdc_export.timeline(), false) and not witness.vouches
                 -- A copy of the data is put back while there is no server.
                 or j.id is not null and j.server_started_at is distinct from pg_postmaster_start_time() and witness.denies as is_restored,
               coalesce(w.table_oid = t.oid and w.table_columns_hash = here.table_columns_hash and w.relfilenode <> here.relfilenode, false)
                 as table_rewritten,
               -- Every export moves the position of live rows, so that each tells of those that the one before has not.
               (select coalesce(sum(l.quiet_deletes), 0)::bigint from cdc_export.change_log l
                where l.table_oid = t.oid and l.operation = 'Q' and l.xid >= pg_snapshot_xmin(w.live_snapshot) and not pg_visible_in_snapshot(l.xid, w.live_snapshot))
                 as quiet_deletes,
               array(
                 select p::oid from jsonb_object_keys(here.guard_state -> 'relations') p where not w.guard_state -> 'relations' ? p)
                 as arrived,
               writers.open_transactions, writers.oldest_transaction_seconds,
               t.oid as table_oid, here.relfilenode, here.table_columns_hash, here.guard_state || wanted.guard_state as guard_state,
               (w.guard_state ->> 'deleted_since')::timestamptz as deleted_since,
               (w.guard_state ->> 'time')::bigint as timed_by, coalesce(w.guard_state ->> 'filter' = wanted.guard_state ->> 'filter', false) as knows_filter,
               c.system_identifier as cluster_id
             from pg_class t
             join pg_namespace n on n.oid = t.relnamespace
             cross join pg_control_system() c
             cross join lateral ",
            capture!(),
            " capture
             cross join lateral ",
            include_str!("guard/here.sql"),
            " here
             -- The snapshot has the whole cluster's transactions; of interest are those that may yet change this database's
             -- tables, which our own don't.
             cross join lateral (
               select (count(distinct l.pid) + (select count(*) from pg_prepared_xacts p where p.database = current_database()))::int
                   as open_transactions,
                 max(extract(epoch from clock_timestamp() - a.xact_start))::float8 as oldest_transaction_seconds
               from pg_locks l join pg_stat_activity a on a.pid = l.pid
               where l.locktype = 'transactionid' and l.granted and l.mode = 'ExclusiveLock' and a.datname = current_database()
                 and a.backend_type <> 'autovacuum worker'
                 and a.application_name is distinct from current_setting('application_name')) writers
             cross join (select $4::boolean as by_triggers, $5::text as definition, $6::jsonb as types, $10::jsonb as guard_state) wanted
             cross join (select $2::text as consumer_id, $3::text as dataset) lane
             left join exports j on j.id = $7
             -- What the caller had loaded last was looked at when it asked, unless that was before the database was put back.
             cross join lateral (
               select $8::uuid as job, $9::text as sha256,
                 j.has_after and j.timeline = cdc_export.timeline() and j.server_started_at = pg_postmaster_start_time() as is_asked) m
             cross join lateral ",
            include_str!("guard/witness.sql"),
            " witness
             left join watermarks w on w.consumer_id = lane.consumer_id and w.dataset = lane.dataset
             where t.oid = to_regclass($1)"
        ))
        .bind(quote::relation(&schema.table))
        .bind(consumer.map(|consumer| consumer.as_str()))
        .bind(&dataset.name)
        .bind(dataset.capture == Capture::Triggers)
        .bind(dataset.definition())
        .bind(Json(&schema.types))
        .bind(job.map(JobId::as_uuid))
        .bind(marker.map(|marker| marker.job.as_uuid()))
        .bind(marker.map(|marker| &marker.sha256))
        .bind(Json(&schema.guard_state))
        .fetch_one(leader)
        .await
    }

    /// The guard's word.
    pub(super) fn continuity(&self) -> Result<Option<Continuity>, Error> {
        Continuity::of_guard(self.continuity.as_deref())
            .map_err(|_| Error::Protocol("a word of continuity that nobody knows"))
    }

    /// Where the consumer stands.
    pub(super) fn position(&self, continuity: Option<Continuity>) -> Position {
        // A time that somebody set in place of ours rules alone, once.
        let by_hand = matches!(continuity, Some(Continuity::NoSnapshot | Continuity::WatermarkEdited));
        // Set back to nothing: every live row again, and the deletions that are due.
        let anew = continuity == Some(Continuity::Rewound) && self.last_exported_at.is_none();
        Position {
            version: self.version,
            last_exported_at: self.last_exported_at,
            since: self.last_exported_at.filter(|_| self.is_timed(continuity)),
            live: self.live_snapshot.clone().filter(|_| !by_hand && !anew),
            deletions: self.deletions_snapshot.clone().filter(|_| !by_hand),
            deleted_since: self.deleted_since(continuity),
        }
    }

    /// Since when soft-deleted rows are due by their times. A watermark that was set by hand is obeyed for them as for live rows.
    fn deleted_since(&self, continuity: Option<Continuity>) -> Option<DateTime<Utc>> {
        let since = match continuity {
            Some(Continuity::NoSnapshot | Continuity::WatermarkEdited) => self.last_exported_at,
            Some(Continuity::Rewound) => self.last_exported_at.into_iter().chain(self.deleted_since).min(),
            // Without a log nobody sees that a watermark was set back.
            _ if self.live_snapshot.is_none() => self.last_exported_at.into_iter().chain(self.deleted_since).min(),
            _ => self.deleted_since,
        };
        since.filter(|_| self.is_timed(continuity))
    }

    /// Whether the watermark rules beside the log. A time of another column than now says nothing of this one's, until somebody sets
    /// it, or a full export has brought every row.
    fn is_timed(&self, continuity: Option<Continuity>) -> bool {
        let is_its = self.timed_by.is_none_or(|was| *self.guard_state.0.get("time") == was);
        is_its || self.live_snapshot.is_none() || continuity.is_some_and(Continuity::is_by_hand)
    }

    /// What is reported of the job.
    pub(super) fn report(&self, continuity: Option<Continuity>) -> SnapshotReport {
        SnapshotReport {
            continuity,
            open_transactions: u32::try_from(self.open_transactions).ok(),
            oldest_transaction_seconds: self.oldest_transaction_seconds,
            table_rewritten: self.table_rewritten,
            quiet_deletes: self.quiet_deletes.unsigned_abs(),
        }
    }

    /// Where the consumer stands after an export of this type.
    pub(super) fn new_position(
        mut self,
        export_type: ExportType,
        continuity: Option<Continuity>,
        dataset: &Dataset,
        schema: &TableSchema,
    ) -> NewPosition {
        if export_type != ExportType::Full && !self.is_timed(continuity) {
            self.guard_state.0.set("time", 0);
        }
        // An incremental export leaves the deletions due. After another one the log tells them, and without a log the watermark.
        let due = self.deleted_since(continuity).filter(|_| export_type == ExportType::Incremental);
        self.guard_state.0.set("deleted_since", due.map(|time| time.to_rfc3339()));
        // The deletions stay due, while the position knows the new file as the table's.
        if export_type == ExportType::Incremental && continuity == Some(Continuity::Truncated) {
            self.guard_state.0.set("truncated", true);
        }
        NewPosition {
            snapshot: Some(self.snapshot).filter(|_| dataset.capture == Capture::Triggers),
            taken_at: self.taken_at,
            table: Fingerprint {
                table_oid: self.table_oid.0,
                relfilenode: self.relfilenode.map(|oid| oid.0),
                table_columns_hash: self.table_columns_hash,
                definition: dataset.definition(),
                types: schema.types.clone(),
                guard_state: self.guard_state.0,
                cluster_id: self.cluster_id,
            },
        }
    }
}
