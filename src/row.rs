//! The receiver of a reader's rows: the seam between `source`, which reads rows, and `pipeline`, which encodes them.
//!
//! Rows are in Postgres's binary form, as `pg_rows::row` describes it.

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
