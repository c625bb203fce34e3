//! Rows to bytes of a file format. Synchronous, no I/O; knows nothing of queries, jobs or files.

pub mod csv;
mod timestamp;

use crate::row;

/// Why a row can't be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text that isn't UTF-8, as a database in `SQL_ASCII` may hold.
    #[error("column `{column}` holds a text that is not UTF-8")]
    InvalidText {
        /// The column's name.
        column: &'static str,
    },
    /// A field of another size than its type has: the table changed under the export, or the service has a defect.
    #[error("column `{column}` is not of the expected type")]
    WrongType {
        /// The column's name.
        column: &'static str,
    },
    /// A row of another number of fields than there are columns.
    #[error("a row of {found} fields where {expected} were expected")]
    WrongShape {
        /// Columns of the file.
        expected: usize,
        /// Fields of the row.
        found: usize,
    },
    /// A frame that ends inside a row.
    #[error(transparent)]
    CutShort(#[from] row::CutShort),
}
