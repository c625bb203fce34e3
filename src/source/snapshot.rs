//! One export's snapshot: the leader's transaction holds it from the position's reading to the commit, readers import
//! it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgConnection};

use crate::connection::failure::with_timeout;
use crate::dataset::{Dataset, TableSchema};
use crate::job::marker::Marker;
use crate::job::{ConsumerId, ExportType, JobId, SnapshotReport};
use crate::source::Error;
use crate::source::connections::ExportConnections;
use crate::source::import::Import;
use crate::source::rows::Rows;
use crate::source::select::Select;
use crate::source::session::{Leader, Readers};
use crate::watermark::{NewPosition, Position};

/// The purpose of a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Purpose<'a> {
    /// For whom; `None`: for whoever asked.
    pub consumer: Option<&'a ConsumerId>,
    /// The type of the export, which says which rows it has.
    pub export_type: ExportType,
    /// The job; `None`: only to see how it would be read.
    pub job: Option<JobId>,
    /// The lane's marker at the destination.
    pub marker: Option<&'a Marker>,
}

/// An open snapshot. Dropped, it is given up: both connections close and their transactions end.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) connections: ExportConnections,
    pub(super) readers: Readers,
    pub(super) import: Import,
    pub(super) dataset: Arc<Dataset>,
    /// The table as it is in the snapshot.
    pub schema: TableSchema,
    /// The consumer's position when the snapshot was taken.
    pub position: Position,
    /// Findings for the job's report.
    pub report: SnapshotReport,
    /// The consumer's next position, if this export is committed.
    pub new_position: NewPosition,
    /// True if a value may be kept outside of its row.
    pub(super) toasted: bool,
    /// The number of blocks of the table. `None`: it can't be read in ranges.
    pub(super) blocks: Option<u64>,
    pub(super) reader_is_good: bool,
}

impl Snapshot {
    /// The leader, to be kept alive, and the rows, to be read meanwhile.
    pub fn split(&mut self) -> (Leader<'_>, Rows<'_>) {
        let rows = Rows {
            reader: &mut self.connections.reader,
            readers: &self.readers,
            session: &self.connections.reader_session,
            reader_slots: &self.connections.reader_slots,
            import: &self.import,
            select: Select { dataset: &self.dataset, schema: &self.schema },
            position: &self.position,
            table_oid: self.new_position.table.table_oid,
            toasted: self.toasted,
            blocks: self.blocks,
        };
        (Leader { conn: &mut self.connections.leader, readers: &self.readers }, rows)
    }

    /// Ends the reading and makes the leader's transaction ready for the commit's writes, with the savepoint `writes`
    /// before them; lends its connection.
    ///
    /// From here on the transaction holds locks that others wait for, so it doesn't live longer than a lease without a
    /// sign.
    ///
    /// # Errors
    /// If a connection is lost.
    pub async fn begin_commit(&mut self, lease: Duration) -> Result<&mut PgConnection, Error> {
        let failed = Error::from_sql(&self.dataset.table);
        let end_reading =
            sqlx::raw_sql("-- source.snapshot.end_reading\n commit").execute(&mut self.connections.reader);
        let end_reading = tokio::time::timeout(lease / 3, end_reading);
        let settings = format!(
            "-- source.snapshot.begin_commit
             set local lock_timeout = '5s';
             set local idle_in_transaction_session_timeout = {};
             select set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off';
             savepoint writes",
            lease.as_millis()
        );
        let begin = sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut self.connections.leader);
        let (ended, begun) = tokio::join!(end_reading, begin);
        // The rows are in the file: a reader that is lost now is no loss.
        self.reader_is_good = matches!(ended, Ok(Ok(_)));
        begun.map_err(&failed)?;
        Ok(&mut self.connections.leader)
    }

    /// Commits, and gives the connections back for the next job if both are good.
    ///
    /// # Errors
    /// If the answer is lost or takes longer than `timeout`, or Postgres refuses. Whether it committed is not known
    /// then: only the job's row tells.
    pub async fn commit(mut self, timeout: Duration) -> Result<Option<ExportConnections>, Error> {
        let failed = Error::from_sql(&self.dataset.table);
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
