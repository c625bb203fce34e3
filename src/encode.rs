//! Rows to bytes of a file format. Synchronous, no I/O; knows nothing of queries, jobs or files.

pub mod compress;
mod csv;
mod datetime;
mod digits;
mod float;
mod ndjson;
mod numeric;
#[cfg(feature = "parquet")]
mod parquet;
mod value;

use crate::dataset::Column;
use crate::job::Format;
use crate::row;

/// Writes rows of fixed columns in one of the formats.
pub enum Encoder {
    /// CSV
    Csv(csv::Encoder),
    /// Lines of JSON
    Ndjson(ndjson::Encoder),
    /// Parquet
    #[cfg(feature = "parquet")]
    Parquet(Box<parquet::Encoder>),
}

impl Encoder {
    /// For rows that have just these columns, in this order. What a format compresses by itself it does at this level, its own
    /// where none is given.
    ///
    /// # Errors
    /// If this build doesn't have the format.
    pub fn new(format: Format, columns: Vec<Column>, level: Option<u8>) -> Result<Encoder, Error> {
        match format {
            Format::Csv => Ok(Encoder::Csv(csv::Encoder::new(columns))),
            Format::Ndjson => Ok(Encoder::Ndjson(ndjson::Encoder::new(columns))),
            #[cfg(feature = "parquet")]
            Format::Parquet => Ok(Encoder::Parquet(Box::new(parquet::Encoder::new(columns, level)?))),
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => {
                let _ = level;
                Err(Error::NotBuilt(format))
            }
        }
    }

    /// Appends what stands before the rows.
    pub fn begin(&self, out: &mut Vec<u8>) {
        match self {
            Encoder::Csv(csv) => csv.header(out),
            Encoder::Ndjson(_) => {}
            #[cfg(feature = "parquet")]
            Encoder::Parquet(_) => {}
        }
    }

    /// Takes a row, given as its fields' binary forms, and appends what can be written by now.
    ///
    /// # Errors
    /// If a field doesn't fit its column; `out` then ends in half a row.
    pub fn row(&mut self, fields: &[Option<&[u8]>], out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Encoder::Csv(csv) => csv.row(fields, out),
            Encoder::Ndjson(ndjson) => ndjson.row(fields, out),
            #[cfg(feature = "parquet")]
            Encoder::Parquet(parquet) => parquet.row(fields, out),
        }
    }

    /// Appends what is left, and what stands behind the rows.
    ///
    /// # Errors
    /// If the format's writer fails: a defect.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            #[cfg(feature = "parquet")]
            Encoder::Parquet(parquet) => parquet.finish(out),
            Encoder::Csv(_) | Encoder::Ndjson(_) => {
                let _ = out;
                Ok(())
            }
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
        column: String,
    },
    /// A field of another size than its type has: the table changed under the export, or the service has a defect.
    #[error("column `{column}` is not of the expected type")]
    WrongType {
        /// The column's name.
        column: String,
    },
    /// A row of another number of fields than there are columns.
    #[error("a row of {found} fields where {expected} were expected")]
    WrongShape {
        /// Columns of the file.
        expected: usize,
        /// Fields of the row.
        found: usize,
    },
    /// A value that the format has no form for.
    #[error(
        "column `{column}` holds a value that the format has no form for, as infinity: csv and ndjson have one for all"
    )]
    NotInFormat {
        /// The column's name.
        column: String,
    },
    /// This build was made without it.
    #[error("this build doesn't write {0}")]
    NotBuilt(Format),
    /// Parquet's writer failed: a defect.
    #[cfg(feature = "parquet")]
    #[error("the parquet writer failed")]
    Parquet(#[from] ::parquet::errors::ParquetError),
    /// The compressor gave up, as for want of memory.
    #[error("the file could not be compressed")]
    Compressor(#[source] std::io::Error),
    /// A frame that ends inside a row.
    #[error(transparent)]
    CutShort(#[from] row::CutShort),
}
