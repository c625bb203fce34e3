//! An attempt's snapshot: the leader's transaction holds it from the reading of the positions to the commit, readers
//! import it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::connections::ExportConnections;
use crate::continuity::{Continuity, ExportReport};
use crate::import::{Import, ImportedSnapshot};
use crate::session::{Reader, Readers};
use crate::watermark::{NewPosition, Position};
use crate::{Error, Remedy};
use cdc_dataset::{Dataset, TableSchema};
use pg_rows::encoding::Format;
use pg_rows::export_type::ExportType;
use pg_session::failure::with_timeout;
use pg_session::table_name::Table;

/// The purpose of a snapshot: an export of one dataset. The purposes of one snapshot have the same consumer.
#[derive(Clone, Copy, Debug)]
pub struct Purpose<'a> {
    pub dataset: &'a Arc<Dataset>,
    /// For whom; `None`: for whoever asked.
    pub consumer: Option<&'a str>,
    pub export_type: ExportType,
    pub format: Format,
}

impl Purpose<'_> {
    /// Returns true if the partitions of its table are read one after the other. A request's own columns and rows are
    /// read from the table as a whole.
    pub(super) fn reads_one_by_one(&self) -> bool {
        self.export_type == ExportType::Full && self.consumer.is_some()
    }
}

/// An open snapshot. Dropped, it is given up: both connections close and their transactions end.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) connections: ExportConnections,
    pub(super) readers: Readers,
    pub(super) own: Arc<Reader>,
    /// The tables, in the order of the purposes.
    pub tables: Vec<SnapshotTable>,
    /// The place of the table of which the reader is a reader now.
    pub(super) at: Option<usize>,
    /// False once the reader is lost, although all of its rows were read.
    pub(super) reader_is_good: bool,
}

#[derive(Debug)]
pub struct SnapshotTable {
    pub(super) import: Import,
    pub(super) imported: ImportedSnapshot,
    /// The partitions that are read one after the other, each in a transaction of its own, so that the reader locks no
    /// more than one. Empty: the table is read as a whole.
    pub(super) leaves: Vec<Table>,
    pub(super) dataset: Arc<Dataset>,
    pub(super) export_type: ExportType,
    pub schema: TableSchema,
    pub position: Position,
    /// The report of the export, as far as the snapshot decides it.
    pub report: ExportReport,
    /// The fingerprint of the secret of masks that the database accepts. `None`: there is none.
    pub mask_secret: Option<String>,
    /// The consumer's next position, if this export is committed.
    pub new_position: NewPosition,
    pub(super) remedy: Remedy,
    pub(super) guard: Option<Continuity>,
    /// Partitions that the position doesn't know.
    pub(super) arrived: Vec<Oid>,
    /// True if no change was logged since the position.
    pub(super) is_quiet: bool,
    pub(super) had_position: bool,
    /// True if a value may be kept outside of its row.
    pub(super) toasted: bool,
    /// The number of blocks of the table. `None`: it can't be read in ranges.
    pub(super) blocks: Option<u64>,
    /// The number of rows as Postgres counted them last. `None`: it never did.
    pub(super) rows: Option<u64>,
}

impl SnapshotTable {
    /// Requires that a word of the guard allows this type of export.
    pub(super) fn require(&self, word: Option<Continuity>) -> Result<(), Error> {
        // An ad-hoc export has no position, and is full. Without times there is no rule for a watermark that somebody
        // made.
        let is_allowed = |why: &Continuity| {
            let by_its_time = why.is_manual() && self.schema.updated_at.is_none();
            why.allows(self.export_type) && (self.export_type == ExportType::Full || !by_its_time)
        };
        match word.filter(|why| !is_allowed(why)) {
            Some(why) => Err(Error::FullExportNeeded { why, remedy: self.remedy.clone() }),
            None => Ok(()),
        }
    }

    /// Returns true if partitions came since the position, of which the export has the logged rows alone.
    pub(super) fn may_lack_arrivals(&self) -> bool {
        !self.arrived.is_empty() && self.guard.is_none_or(Continuity::keeps_live_rows)
    }

    /// Returns true if an export of changes begins anew, because the consumer's position was removed. As long as the
    /// consumer was given no row, there is nothing to miss.
    pub fn begins(&self) -> bool {
        self.export_type != ExportType::Full && self.position.version.is_none() && self.had_position
    }

    /// Returns true if an export of changes has no rows, as far as that is known without reading the table: no change
    /// was logged since the position, and nothing but the log decides. The timestamp rule finds no row then either: all
    /// rows with a later time than the watermark were written after the last export.
    pub fn has_no_changes(&self) -> bool {
        let is_plain = self.export_type != ExportType::Full && self.guard.is_none() && self.arrived.is_empty();
        is_plain && self.is_quiet && self.dataset.filter.is_none() && self.position.deleted_since.is_none()
    }
}

impl Snapshot {
    /// Makes the leader's transaction ready for the commit's writes, with the savepoint `writes` before them. Lends its
    /// connection. The second value is true if Postgres has a synchronous standby.
    ///
    /// From here on the transaction holds locks that others wait for, so it doesn't live longer than a lease without a
    /// sign.
    ///
    /// The commit waits for no synchronous standby: while one is dead, the transaction would keep its locks on the
    /// tables. The publisher waits for it before anybody can see a file.
    pub async fn begin_commit(&mut self, lease: Duration) -> Result<(&mut PgConnection, bool), Error> {
        let failed = Error::from_sql(&self.tables[0].dataset.table);
        let settings = format!(
            "-- source.snapshot.begin_commit
             set local lock_timeout = '5s';
             set local idle_in_transaction_session_timeout = {};
             set local synchronous_commit = local;
             savepoint writes;
             select current_setting('synchronous_standby_names') <> ''",
            lease.as_millis()
        );
        let begun = sqlx::raw_sql(AssertSqlSafe(settings)).fetch_one(&mut self.connections.leader).await;
        let has_standby = begun.and_then(|row| row.try_get(0)).map_err(failed)?;
        Ok((&mut self.connections.leader, has_standby))
    }

    /// Ends the transactions of the readers and the leader, so that nobody waits for their locks any more. Before
    /// Postgres 14, a reader whose connection is closed goes on until it has a row to send.
    pub async fn give_up(&mut self) {
        self.readers.end(&mut self.connections.leader).await;
    }

    /// Commits, and gives the connections back for the next job if both are good.
    ///
    /// # Errors
    /// If the answer is lost or takes longer than `timeout`, or Postgres refuses. Whether it committed is not known
    /// then: only the job's row tells.
    pub async fn commit(mut self, timeout: Duration) -> Result<Option<ExportConnections>, Error> {
        let failed = Error::from_sql(&self.tables[0].dataset.table);
        let commit = sqlx::raw_sql("-- source.snapshot.commit\n commit").execute(&mut self.connections.leader);
        with_timeout(timeout, async { commit.await.map_err(failed) }, Error::Unavailable).await?;
        let Snapshot { mut connections, reader_is_good, .. } = self;
        if !reader_is_good {
            connections.reader_session.end(&mut connections.leader).await;
            return Ok(None);
        }
        connections.answered_at = Instant::now();
        Ok(Some(connections))
    }
}
