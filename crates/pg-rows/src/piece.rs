//! Pieces of a file, and the encoder that makes them of one reader's rows.
//!
//! Knows no format beyond the enum that dispatches each row to its format's encoder.

#[cfg(feature = "parquet")]
use ::parquet::column::writer::ColumnCloseResult;

use crate::csv::Csv;
use crate::ndjson::Ndjson;
#[cfg(feature = "parquet")]
use crate::parquet;
use crate::writer::RowEncoder;
use crate::{Error, Layout, text};

/// Makes pieces of one file from the rows of one reader.
///
/// Several encoders of one layout can make pieces of one file. The pieces may be concatenated in any order.
pub struct Encoder(FormatEncoder);

/// The encoder of each format: static dispatch for each row.
pub(crate) enum FormatEncoder {
    /// The encoder of CSV.
    Csv(text::TextEncoder<Csv>),
    /// The encoder of JSON lines.
    Ndjson(text::TextEncoder<Ndjson>),
    /// The encoder of Parquet.
    #[cfg(feature = "parquet")]
    Parquet(parquet::GroupEncoder),
}

/// Whole rows of one reader, encoded and compressed.
pub struct Piece {
    /// The encoded rows.
    pub(crate) bytes: Vec<u8>,
    /// The entries of Parquet's footer for the columns in `bytes`; empty in other formats.
    #[cfg(feature = "parquet")]
    pub(crate) columns: Vec<ColumnCloseResult>,
}

impl Piece {
    /// A piece that no footer mentions.
    pub(crate) fn new(bytes: Vec<u8>) -> Piece {
        Piece {
            bytes,
            #[cfg(feature = "parquet")]
            columns: Vec::new(),
        }
    }
}

impl Encoder {
    /// Makes an encoder without rows.
    pub fn new(layout: &Layout) -> Encoder {
        Encoder(layout.writer.encoder())
    }

    /// Encodes a row, given as the binary form of each field. `None` is NULL.
    ///
    /// # Errors
    /// If a field doesn't fit its column. The encoder then holds half a row and must be dropped.
    pub fn row(&mut self, fields: &[Option<&[u8]>]) -> Result<(), Error> {
        match &mut self.0 {
            FormatEncoder::Csv(csv) => csv.append(fields),
            FormatEncoder::Ndjson(ndjson) => ndjson.append(fields),
            #[cfg(feature = "parquet")]
            FormatEncoder::Parquet(parquet) => parquet.append(fields),
        }
    }

    /// Returns true if the rows since the last piece are enough for another piece.
    pub fn is_full(&self) -> bool {
        self.0.as_encoder().is_full()
    }

    /// Returns true if there is no row since the last piece.
    pub fn is_empty(&self) -> bool {
        self.0.as_encoder().is_empty()
    }

    /// Makes a piece of the rows since the last one.
    ///
    /// # Errors
    /// If memory runs out, or the format's library fails.
    pub fn pack(&mut self) -> Result<Piece, Error> {
        self.0.as_encoder_mut().finish()
    }
}

impl FormatEncoder {
    fn as_encoder(&self) -> &dyn RowEncoder {
        match self {
            FormatEncoder::Csv(csv) => csv,
            FormatEncoder::Ndjson(ndjson) => ndjson,
            #[cfg(feature = "parquet")]
            FormatEncoder::Parquet(parquet) => parquet,
        }
    }

    fn as_encoder_mut(&mut self) -> &mut dyn RowEncoder {
        match self {
            FormatEncoder::Csv(csv) => csv,
            FormatEncoder::Ndjson(ndjson) => ndjson,
            #[cfg(feature = "parquet")]
            FormatEncoder::Parquet(parquet) => parquet,
        }
    }
}
