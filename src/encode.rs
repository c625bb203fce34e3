//! Rows to bytes of a file format. Synchronous, no I/O; knows nothing of queries, jobs or files.

pub mod compress;
mod csv;
mod ndjson;
mod timestamp;
mod value;

use crate::dataset::Column;
use crate::job::Format;
use crate::row;

/// Writes rows of fixed columns in one of the formats.
#[derive(Clone, Debug)]
pub enum Encoder {
    /// CSV
    Csv(csv::Encoder),
    /// Lines of JSON
    Ndjson(ndjson::Encoder),
}

impl Encoder {
    /// For rows that have just these columns, in this order.
    pub fn new(format: Format, columns: Vec<Column>) -> Encoder {
        match format {
            Format::Csv => Encoder::Csv(csv::Encoder::new(columns)),
            Format::Ndjson => Encoder::Ndjson(ndjson::Encoder::new(columns)),
        }
    }

    /// Appends what stands before the rows.
    pub fn begin(&self, out: &mut Vec<u8>) {
        match self {
            Encoder::Csv(csv) => csv.header(out),
            Encoder::Ndjson(_) => {}
        }
    }

    /// Appends a row, given as its fields' binary forms.
    ///
    /// # Errors
    /// If a field doesn't fit its column; `out` then ends in half a row.
    pub fn row(&self, fields: &[Option<&[u8]>], out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Encoder::Csv(csv) => csv.row(fields, out),
            Encoder::Ndjson(ndjson) => ndjson.row(fields, out),
        }
    }
}

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
    /// The compressor gave up, as for want of memory.
    #[error("the file could not be compressed")]
    Compressor(#[source] std::io::Error),
    /// A frame that ends inside a row.
    #[error(transparent)]
    CutShort(#[from] row::CutShort),
}
