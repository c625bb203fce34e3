//! The receiver of a reader's rows: the seam between `source`, which reads rows, and `pipeline`, which encodes them.
//!
//! Rows are in Postgres's binary form, as `pg_rows::row` describes it.

/// Takes the rows that one reader of a snapshot reads, where they arrive: on the reader's own task.
pub trait RowReceiver: Send + 'static {
    /// Takes whole rows. True: it holds as much as it wants to, and is to pass that on before it takes more.
    fn receive(&mut self, rows: &[u8]) -> bool;

    /// Passes on what it holds, and waits where that isn't wanted yet: a slow writer slows the reader.
    ///
    /// # Errors
    /// If nobody wants it any more. The other side says why.
    fn pass_on(&mut self) -> impl Future<Output = Result<(), Unwanted>> + Send;
}

/// Nobody takes the rows any more.
#[derive(Debug)]
pub struct Unwanted;
