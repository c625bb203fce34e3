//! An exported snapshot, with the other results of the statement that exports it: of each dataset the consumer's
//! position, the guard's word, and the facts to save in the position after this export.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sqlx::postgres::types::Oid;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::captured::CAPTURE;
use crate::continuity::{Continuity, ExportReport};
use crate::guard::{LaneEvidence, VERDICT};
use crate::relation_locks::READS_ALONE;
use crate::snapshot::Purpose;
use crate::watermark::{Fingerprint, NewPosition, Position};
use crate::{Error, quote};
use cdc_dataset::{Capture, Dataset, GuardState, TableSchema};
use pg_rows::export_type::ExportType;
use pg_session::statement::with_pieces;
use pg_session::table_name::Table;

static OPEN: LazyLock<String> = LazyLock::new(|| {
    let pieces = [("captured.sql", CAPTURE), ("guard/verdict.sql", VERDICT), READS_ALONE];
    with_pieces(include_str!("opening.sql"), &pieces)
});

/// A row of the statement `OPEN`: the snapshot, and what it has of one dataset.
#[derive(sqlx_macros::FromRow)]
pub(super) struct ExportedSnapshot {
    pub(super) name: String,
    snapshot: String,
    taken_at: DateTime<Utc>,
    pub(super) encoding: String,
    pub(super) logged_key: Option<Vec<String>>,
    pub(super) captured: bool,
    /// The schemas and names of the partitions that have rows, if each can be read by itself.
    leaves: Option<Json<Vec<(String, String)>>>,
    pub(super) toasted: bool,
    /// The number of blocks of the table's file, if it has one.
    pub(super) blocks: Option<i64>,
    /// The number of rows as Postgres counted them last. `None`: it never did.
    pub(super) rows: Option<i64>,
    version: Option<i64>,
    last_exported_at: Option<DateTime<Utc>>,
    live_snapshot: Option<String>,
    deletions_snapshot: Option<String>,
    continuity: Option<String>,
    pub(super) is_quiet: bool,
    pub(super) arrived: Vec<Oid>,
    table_rewritten: bool,
    quiet_deletes: i64,
    open_transactions: i32,
    oldest_transaction_seconds: Option<f64>,
    pub(super) table_oid: Oid,
    relfilenode: Option<Oid>,
    table_columns_hash: String,
    guard_state: Json<GuardState>,
    /// The time since which soft deletes are due by their times, because the log doesn't have them.
    deleted_since: Option<DateTime<Utc>>,
    /// The number of the column that the watermark's time is from. 0: not from one column alone.
    timed_by: Option<i64>,
    /// True if the filter's functions are unchanged since the position was saved.
    pub(super) knows_filter: bool,
    cluster_id: i64,
    pub(super) mask_secret: Option<String>,
}

impl ExportedSnapshot {
    /// Exports the snapshot of the leader's transaction, and returns what it has of each purpose's table. One statement
    /// also reads the positions and runs the guard, so that all is from the same moment.
    pub(super) async fn take(
        leader: &mut PgConnection,
        purposes: &[Purpose<'_>],
        schemas: &[TableSchema],
        evidence: &[LaneEvidence],
    ) -> Result<Vec<ExportedSnapshot>, sqlx::Error> {
        sqlx::query_as(AssertSqlSafe(OPEN.as_str()))
            .bind(schemas.iter().map(|schema| quote::relation(&schema.table)).collect::<Vec<_>>())
            .bind(purposes.first().and_then(|purpose| purpose.consumer))
            .bind(purposes.iter().map(|it| it.dataset.name.as_str()).collect::<Vec<_>>())
            .bind(purposes.iter().map(|it| it.dataset.capture == Capture::Triggers).collect::<Vec<_>>())
            .bind(purposes.iter().map(|it| it.dataset.definition()).collect::<Vec<_>>())
            .bind(schemas.iter().map(|schema| Json(&schema.types)).collect::<Vec<_>>())
            .bind(evidence.iter().map(|lane| lane.confirms).collect::<Vec<_>>())
            .bind(evidence.iter().map(|lane| lane.contradicts).collect::<Vec<_>>())
            .bind(schemas.iter().map(|schema| Json(&schema.guard_state)).collect::<Vec<_>>())
            .fetch_all(leader)
            .await
    }

    pub(super) fn leaves(&self) -> Vec<Table> {
        let leaves = self.leaves.iter().flat_map(|Json(leaves)| leaves);
        leaves.map(|(schema, name)| Table { schema: Some(schema.clone()), name: name.clone() }).collect()
    }

    pub(super) fn continuity(&self) -> Result<Option<Continuity>, Error> {
        Continuity::from_guard(self.continuity.as_deref()).map_err(|_| Error::Protocol("an unknown word of continuity"))
    }

    pub(super) fn position(&self, continuity: Option<Continuity>) -> Position {
        // A time that somebody set by hand replaces the snapshots, for one export.
        let by_hand = continuity.is_some_and(Continuity::is_by_time);
        // The watermark was removed: export every live row again, and the deletions that are due.
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

    /// Returns the time since which soft-deleted rows are due by their times. A watermark that was set by hand applies
    /// to them and to live rows.
    fn deleted_since(&self, continuity: Option<Continuity>) -> Option<DateTime<Utc>> {
        let since = match continuity {
            Some(word) if word.is_by_time() => self.last_exported_at,
            Some(Continuity::Rewound) => self.last_exported_at.into_iter().chain(self.deleted_since).min(),
            // Without a log the guard can't detect that a watermark was set back.
            _ if self.live_snapshot.is_none() => self.last_exported_at.into_iter().chain(self.deleted_since).min(),
            _ => self.deleted_since,
        };
        since.filter(|_| self.is_timed(continuity))
    }

    /// Returns true if the timestamp rule applies in addition to the log. A time from another column than the present
    /// one is not comparable. The rule then applies again after somebody sets the watermark, or after a full export.
    fn is_timed(&self, continuity: Option<Continuity>) -> bool {
        let is_same_column = self.timed_by.is_none_or(|was| *self.guard_state.0.get("time") == was);
        is_same_column || self.live_snapshot.is_none() || continuity.is_some_and(Continuity::is_manual)
    }

    pub(super) fn report(&self, continuity: Option<Continuity>) -> ExportReport {
        ExportReport {
            continuity,
            open_transactions: u32::try_from(self.open_transactions).ok(),
            oldest_transaction_seconds: self.oldest_transaction_seconds,
            table_rewritten: self.table_rewritten,
            quiet_deletes: self.quiet_deletes.unsigned_abs(),
            ..ExportReport::default()
        }
    }

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
        // Deletions stay due after an incremental export. After an export of another type, the log has the later
        // deletions. Without a log, the watermark determines them.
        let due = self.deleted_since(continuity).filter(|_| export_type == ExportType::Incremental);
        self.guard_state.0.set("deleted_since", due.map(|time| time.to_rfc3339()));
        // The deletions stay due, although the position saves the number of the new file.
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
