//! Reads the rows of a snapshot: chooses the statements and the number of connections.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinSet;

use crate::continuity::Continuity;
use crate::import::{self, Import};
use crate::progress::Progress;
use crate::reader_slots::{ReaderSlot, ReaderSlots};
use crate::row::{RowLayout, RowReceiver, RowRequest};
use crate::select::Select;
use crate::session::{Reader, Readers};
use crate::snapshot::SnapshotTable;
use crate::{Error, Remedy, copy};
use cdc_dataset::{BadSelection, CellMax, Fault, Faults};
use pg_rows::export_type::ExportType;
use pg_session::failure::{chain, sqlstate};
use pg_session::table_name::Table;

/// The largest text of a value that is stored inside its row, in bytes. A block has at most 32 KiB, compression saves
/// at most a factor of 255, and the text of a byte has at most six characters.
const MOST_IN_A_ROW: u64 = 48 << 20;

const CHANGES: &str = "source.copy.changes";

/// The longest wait until a connection that is no longer needed is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Rows<'s> {
    pub(super) reader: &'s mut PgConnection,
    pub(super) own: &'s Arc<Reader>,
    pub(super) readers: &'s Readers,
    pub(super) reader_slots: &'s ReaderSlots,
    pub(super) table: &'s SnapshotTable,
    pub(super) select: Select<'s>,
}

impl Rows<'_> {
    /// Returns the layout of the rows that [`Rows::read`] sends for this export.
    pub fn layout(&self, export: RowRequest<'_>) -> RowLayout {
        self.select.row_layout(export)
    }

    /// Reads the rows of this export over one or several connections. Each connection has its own receiver.
    pub async fn read<R: RowReceiver>(
        mut self,
        export: RowRequest<'_>,
        max: CellMax,
        progress: &Progress,
        receiver: impl Fn() -> R,
    ) -> Result<(), Error> {
        self.select.order = export.order;
        let read = self.read_all(export, max, progress, receiver).await;
        let Select { dataset, schema, .. } = self.select;
        match read {
            // A function that somebody else wrote may raise the error of the service's own, with any text.
            Err(Error::RowTooLarge { column }) if schema.columns.iter().all(|own| own.name != *column) => {
                Err(Error::Protocol("an error that a function of the database raised in the name of the service"))
            }
            Err(error) => Err(self.explained(error, export).await.withheld(dataset)),
            Ok(()) => Ok(()),
        }
    }

    async fn read_all<R: RowReceiver>(
        &mut self,
        export: RowRequest<'_>,
        max: CellMax,
        progress: &Progress,
        receiver: impl Fn() -> R,
    ) -> Result<(), Error> {
        let select = self.select;
        match export.export_type {
            ExportType::Full if !export.selection.is_all() => {
                // The dataset may have got the mask since the request.
                if let Some(BadSelection { why, .. }) = select.masked(export.selection) {
                    return Err(Error::Mismatch(Faults(vec![Fault::of(select.dataset, "mask", why)])));
                }
                self.copy_all("source.copy.selected", &[select.selected(export.selection, max)], &mut receiver()).await
            }
            ExportType::Full => {
                let max = Some(max).filter(|max| self.table.toasted || max.0 < MOST_IN_A_ROW);
                match self.table.leaves.as_slice() {
                    [] => self.full(select.full(max), progress, receiver).await,
                    leaves => self.full_of_leaves(leaves, max, progress, &mut receiver()).await,
                }
            }
            ExportType::Incremental => self.copy_all(CHANGES, &[select.incremental(max)], &mut receiver()).await,
            ExportType::Delta => self.copy_all(CHANGES, &select.delta(max), &mut receiver()).await,
        }
    }

    /// Reads the whole table. Each reader hands over its rows as soon as they arrive, so their order is not defined.
    /// With a fixed order, all readers but one would have to buffer their rows. Each further reader is a task, so that
    /// it can use another processor.
    ///
    /// A reader that is alone reads all by one scan. Of a large table, Postgres then uses a few buffers again and
    /// again, while ranges take the place of the pages that other sessions use (`GetAccessStrategy` in its
    /// `freelist.c`). Progress then needs a count of the rows, so a table without one is read in ranges all the same.
    async fn full<R: RowReceiver>(
        &mut self,
        select: String,
        progress: &Progress,
        receiver: impl Fn() -> R,
    ) -> Result<(), Error> {
        let table = self.select.dataset.table.clone();
        let (blocks, counted) = (self.table.blocks.unwrap_or(0), self.table.rows);
        let slots = self.reader_slots.take(copy::readers(blocks) - 1);
        if slots.is_empty() && (counted.is_some() || blocks == 0) {
            progress.estimate(counted.unwrap_or(0));
            self.copy_all("source.copy.table", &[select], &mut receiver()).await?;
            tracing::debug!(event = "table_read", %table, readers = 1, ranges = 1);
            return Ok(());
        }
        let reading = copy::Reading { select, ranges: copy::Ranges::new(blocks), table, progress: progress.clone() };
        let reading = Arc::new(reading);
        let mut further = JoinSet::new();
        for slot in slots {
            let (readers, import, reading) = (self.readers.clone(), self.table.import.clone(), Arc::clone(&reading));
            further.spawn(read_too(slot, self.own.name().to_owned(), readers, import, reading, receiver()));
        }
        let mut receiver = receiver();
        let own = copy::read(self.reader, self.own, &reading, &mut receiver);
        let others = async {
            let mut ranges = Vec::new();
            while let Some(done) = further.join_next().await {
                ranges.push(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?);
            }
            Ok::<_, Error>(ranges)
        };
        let (own, others) = tokio::try_join!(own, others)?;
        let readers = 1 + others.iter().filter(|ranges| **ranges > 0).count();
        let ranges = own + others.iter().sum::<u64>();
        tracing::debug!(event = "table_read", table = %reading.table, readers, ranges);
        Ok(())
    }

    /// Reads the whole table, one partition after the other. Each has a transaction of its own: a plan of the table
    /// would lock all partitions and their indexes.
    async fn full_of_leaves<R: RowReceiver>(
        &mut self,
        leaves: &[Table],
        max: Option<CellMax>,
        progress: &Progress,
        receiver: &mut R,
    ) -> Result<(), Error> {
        let Select { dataset, schema, .. } = self.select;
        progress.estimate(self.table.rows.unwrap_or(0));
        for (n, leaf) in leaves.iter().enumerate() {
            self.own.awaits_server();
            let joined = async {
                if n > 0 {
                    import::end(self.reader).await.map_err(Error::from_sql(&dataset.table))?;
                }
                Import::new(&self.table.imported, dataset, schema, Some(leaf)).join(self.reader, &dataset.table).await
            };
            let joined = joined.await;
            self.own.rests();
            joined?;
            let query = Select { leaf: Some(leaf), ..self.select }.full(max);
            let (reader, own) = (&mut *self.reader, &**self.own);
            copy::copy_rows((reader, own), &dataset.table, "source.copy.table", &query, receiver).await?;
        }
        tracing::debug!(event = "table_read", table = %dataset.table, partitions = leaves.len());
        Ok(receiver.flush().await?)
    }

    /// Reads the rows of queries one after the other, by statements of this name.
    async fn copy_all(&mut self, name: &str, queries: &[String], receiver: &mut impl RowReceiver) -> Result<(), Error> {
        for query in queries {
            copy::copy_rows((self.reader, self.own), &self.select.dataset.table, name, query, receiver).await?;
        }
        Ok(receiver.flush().await?)
    }

    /// Returns an error that says which values Postgres could not read: those of the log, of the filter or of the
    /// table. The exported table is locked, so a missing name also belongs to the filter or the log.
    async fn explained(mut self, error: Error, export: RowRequest<'_>) -> Error {
        let (Error::Sql(cause) | Error::TableMissing { cause, .. }) = &error else { return error };
        let Some(reported) = cause.as_database_error() else { return error };
        let (code, message) = (sqlstate(cause).into_owned(), reported.message().to_owned());
        let error = error.withheld(self.select.dataset);
        if export.export_type != ExportType::Full {
            match self.logged_is_readable().await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!(event = "log_unreadable", jobId = %export.job, error = chain(&error));
                    return Error::FullExportNeeded { why: Continuity::ColumnRetyped, remedy: Remedy::FullExport };
                }
                Err(lost) => return lost,
            }
        }
        let dataset = self.select.dataset;
        // Postgres returns these errors for a text that is larger than its limit or than one allocation.
        let has_no_room =
            code == "54000" || code == "XX000" && message.starts_with("invalid memory alloc request size");
        // A filter doesn't damage stored values, and doesn't enlarge a text beyond the limit. So the cause is the row.
        let is_stored = has_no_room || code.starts_with("XX");
        let condition = if dataset.filter.is_some() { "it" } else { "a condition of the request" };
        if !is_stored && (dataset.filter.is_some() || !export.selection.filter.is_empty()) {
            tracing::warn!(event = "filter_fails", jobId = %export.job, error = chain(&error));
            let why = format!("{condition} ends in an error for a row of `{}` (SQLSTATE {code})", dataset.table);
            return Error::Mismatch(Faults(vec![Fault::of(dataset, "filter", why)]));
        }
        let (table, cause) = match error {
            Error::Sql(cause) => (dataset.table.to_string(), cause),
            other => return other,
        };
        match code.get(..2) {
            _ if has_no_room => Error::RowBeyondPostgres { table, cause },
            // If Postgres doesn't understand a statement, this service has a defect.
            Some("42") | None => Error::Sql(cause),
            Some(_) => Error::Unreadable { table, code, cause },
        }
    }

    /// Returns true if the logged keys that this export reads are valid values of the columns' present types.
    async fn logged_is_readable(&mut self) -> Result<bool, Error> {
        let table = &self.select.dataset.table;
        let failed = Error::from_sql(table);
        self.own.awaits_server();
        // The failed statement has aborted the reader's transaction.
        sqlx::raw_sql("-- source.rows.give_up\n rollback").execute(&mut *self.reader).await.map_err(&failed)?;
        self.table.import.join(self.reader, table).await?;
        let select = self.select.logged_keys();
        let read = sqlx::raw_sql(AssertSqlSafe(format!("-- source.rows.logged\n {select}")));
        let read = read.execute(&mut *self.reader).await;
        self.own.rests();
        match read.map(drop).map_err(failed) {
            Ok(()) => Ok(true),
            Err(error) if error.is_of_the_server() => Err(error),
            Err(error) => {
                tracing::debug!(event = "log_probed", error = chain(&error.withheld(self.select.dataset)));
                Ok(false)
            }
        }
    }
}

/// Reads ranges of the table in addition to the first reader. Returns the number of ranges that it read. If this reader
/// can't connect, the other readers read all ranges, and don't wait for it.
async fn read_too(
    slot: ReaderSlot,
    name: String,
    readers: Readers,
    import: Import,
    reading: Arc<copy::Reading>,
    mut receiver: impl RowReceiver,
) -> Result<u64, Error> {
    let joined = async {
        let (mut conn, session) = slot.connect(name).await.map_err(Error::Unavailable)?;
        import.join(&mut conn, &reading.table).await?;
        Ok::<_, Error>((conn, session))
    };
    let joined =
        tokio::select! { joined = joined => joined, () = reading.ranges.exhausted.cancelled() => return Ok(0) };
    let (mut conn, session) = match joined {
        Ok(joined) => joined,
        // This reader has taken no range yet. The cause of its failure, for example a waiting ALTER, doesn't affect the
        // readers that have joined.
        Err(error) => {
            tracing::warn!(event = "reader_missing", error = chain(&error));
            return Ok(0);
        }
    };
    let reader = readers.join(session);
    let ranges = copy::read(&mut conn, &reader, &reading, &mut receiver).await?;
    // All rows have been handed over, so a failure to close the connection loses nothing.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, conn.close()).await;
    Ok(ranges)
}
