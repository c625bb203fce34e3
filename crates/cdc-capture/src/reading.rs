//! The reader's part of a snapshot: one table after the other, each in a transaction of its own, so that the leader
//! alone keeps locks.
//!
//! The leader is kept alive meanwhile, and sees when the reader is lost: see `session`.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;

use crate::continuity::Continuity;
use crate::import::{self, Import};
use crate::reader_slots::ReaderSlots;
use crate::rows::Rows;
use crate::select::Select;
use crate::session::{Leader, Reader, Readers};
use crate::snapshot::{Snapshot, SnapshotTable};
use crate::{Error, arrivals};

#[derive(Debug)]
pub struct SnapshotReader<'s> {
    pub(super) reader: &'s mut PgConnection,
    pub(super) own: &'s Arc<Reader>,
    pub(super) readers: &'s Readers,
    pub(super) reader_slots: &'s ReaderSlots,
    pub(super) tables: &'s mut [SnapshotTable],
    pub(super) at: &'s mut Option<usize>,
    pub(super) reader_is_good: &'s mut bool,
}

impl Snapshot {
    /// The leader, to be kept alive, and the tables, to be read meanwhile.
    pub fn split(&mut self) -> (Leader<'_>, SnapshotReader<'_>) {
        let reader = SnapshotReader {
            reader: &mut self.connections.reader,
            own: &self.own,
            readers: &self.readers,
            reader_slots: &self.connections.reader_slots,
            tables: &mut self.tables,
            at: &mut self.at,
            reader_is_good: &mut self.reader_is_good,
        };
        let session = &self.connections.leader_session;
        (Leader { conn: &mut self.connections.leader, session, readers: &self.readers }, reader)
    }
}

impl SnapshotReader<'_> {
    pub fn tables(&self) -> &[SnapshotTable] {
        self.tables
    }

    /// Returns the rows of a table.
    ///
    /// # Errors
    /// If the table can't be read, or partitions came whose rows were not logged.
    pub async fn rows(&mut self, at: usize) -> Result<Rows<'_>, Error> {
        self.join(at).await?;
        let table = &self.tables[at];
        Ok(Rows {
            reader: self.reader,
            own: self.own,
            readers: self.readers,
            reader_slots: self.reader_slots,
            table,
            select: Select {
                table_oid: table.new_position.table.table_oid,
                position: &table.position,
                ..Select::new(&table.dataset, &table.schema)
            },
        })
    }

    /// Makes the reader a reader of this table, unless it is one already, and checks what only a reader can check.
    pub async fn join(&mut self, at: usize) -> Result<(), Error> {
        if *self.at == Some(at) {
            return Ok(());
        }
        self.own.awaits_server();
        let begun = self.begin(at).await;
        self.own.rests();
        begun
    }

    /// Ends the reading of the last table. All of its rows are in a file, so a reader that is lost now is no loss.
    pub async fn end(&mut self, lease: Duration) {
        if self.at.take().is_some() {
            let ended = tokio::time::timeout(lease / 3, import::end(self.reader)).await;
            *self.reader_is_good = matches!(ended, Ok(Ok(_)));
        }
    }

    async fn begin(&mut self, at: usize) -> Result<(), Error> {
        let table = &mut self.tables[at];
        let failed = Error::from_sql(&table.dataset.table);
        if self.at.take().is_some() {
            import::end(self.reader).await.map_err(&failed)?;
        }
        let saved = table.position.live.as_ref().filter(|_| table.may_lack_arrivals());
        let leaf = table.leaves.first();
        // Otherwise each partition is joined when it is read.
        if leaf.is_none() || saved.is_some() {
            let of_leaf = leaf.map(|leaf| Import::new(&table.imported, &table.dataset, &table.schema, Some(leaf)));
            of_leaf.as_ref().unwrap_or(&table.import).join(self.reader, &table.dataset.table).await?;
        }
        *self.at = Some(at);
        // Whatever else there is to say, the rows of a partition that came and were not logged may be missing.
        if let Some(saved) = saved {
            let found = arrivals::have_unlogged_rows(self.reader, table, saved).await;
            let found = found.map_err(|cause| failed(cause).withheld(&table.dataset))?;
            if leaf.is_some() {
                import::end(self.reader).await.map_err(&failed)?;
            }
            if found {
                table.require(Some(Continuity::PartitionsChanged))?;
                table.report.continuity = Some(Continuity::PartitionsChanged);
            }
        }
        Ok(())
    }
}
