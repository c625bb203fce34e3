//! The encoder of one reader's rows: it makes pieces of a file.

use crate::piece::Piece;
use crate::writer::RowEncoder;
use crate::{Error, Layout};

/// Makes pieces of one file from the rows of one reader.
///
/// Several encoders of one layout can make pieces of one file. The pieces may be concatenated in any order.
pub struct Encoder(Box<dyn RowEncoder>);

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
        self.0.append(fields)
    }

    /// Returns true if the rows since the last piece are enough for another piece.
    pub fn is_full(&self) -> bool {
        self.0.is_full()
    }

    /// Returns true if there is no row since the last piece.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes a piece of the rows since the last one.
    ///
    /// # Errors
    /// If memory runs out, or the format's library fails.
    pub fn pack(&mut self) -> Result<Piece, Error> {
        self.0.finish()
    }
}
