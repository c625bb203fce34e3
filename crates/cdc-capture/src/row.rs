//! The rows that an export requests, and the receiver of the rows that are read.
//!
//! Rows are in Postgres's binary form, as `pg_rows::row` describes it. [`RowLayout`] says which fields a row has.

use uuid::Uuid;

use cdc_dataset::{KnownColumn, Selection, TableColumn};
use pg_rows::export_type::ExportType;

/// Receives the rows that one reader of a snapshot reads, on the reader's own task.
pub trait RowReceiver: Send + 'static {
    /// Takes whole rows. Returns true if the receiver is full: call [`RowReceiver::flush`] before the next rows.
    fn receive(&mut self, rows: &[u8]) -> bool;

    /// Sends the rows on, and waits until there is room for them. So a slow writer slows the reader.
    ///
    /// # Errors
    /// If the other side is closed. It reports the cause itself.
    fn flush(&mut self) -> impl Future<Output = Result<(), ReceiverClosed>> + Send;
}

/// The other side of a receiver accepts no more rows.
#[derive(Debug)]
pub struct ReceiverClosed;

/// The rows and columns that an export requests.
#[derive(Clone, Copy, Debug)]
pub struct RowRequest<'a> {
    /// The job of the export, for the log.
    pub job: Uuid,
    pub export_type: ExportType,
    pub selection: &'a Selection,
    /// The place of the export in its lane. `None` if it has none.
    pub order: Option<i64>,
}

/// The fields of the rows that [`Rows`](crate::rows::Rows) sends for an export.
///
/// The fields are those of the file's columns, except the known one. Behind them are fields that only the service
/// reads: the change time, if no column of the file has it for every row, and then `is_gone`.
///
/// The layout is made beside the statements that follow it. Refuse a row with another number of fields.
#[derive(Clone, Debug)]
pub struct RowLayout {
    /// The columns of the file, in order.
    pub columns: Vec<TableColumn>,
    /// The index of the change time among the columns and the fields behind them; `None`: the rows have none.
    pub updated_at: Option<usize>,
    /// The field that says if the row is gone from the table; `None`: the rows have no such field.
    ///
    /// False: the row is in the table, or is only soft-deleted. True: it is gone, and only its key is known.
    pub is_gone: Option<usize>,
    /// The column that isn't read, because every row of the export has the same value in it.
    pub known: Option<KnownColumn>,
}

impl RowLayout {
    /// The number of fields of a row, with the known column.
    pub fn fields(&self) -> usize {
        let last = self.updated_at.max(self.is_gone).map_or(0, |index| index + 1);
        self.columns.len().max(last)
    }
}
