//! A piece of a file: whole rows of one reader, encoded and compressed.

#[cfg(feature = "parquet")]
use ::parquet::column::writer::ColumnCloseResult;

/// Whole rows of one reader, encoded and compressed.
pub struct Piece {
    pub(crate) bytes: Vec<u8>,
    /// The size of the rows before compression, in text formats.
    pub(crate) text_bytes: usize,
    /// The entries of Parquet's footer for the columns in `bytes`; empty in other formats.
    #[cfg(feature = "parquet")]
    pub(crate) columns: Vec<ColumnCloseResult>,
}

impl Piece {
    /// A piece that no footer mentions.
    pub(crate) fn new(bytes: Vec<u8>, text_bytes: usize) -> Piece {
        Piece {
            bytes,
            text_bytes,
            #[cfg(feature = "parquet")]
            columns: Vec::new(),
        }
    }
}
