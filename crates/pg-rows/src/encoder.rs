//! The encoder of one reader's rows: it makes pieces of a file.

use crate::mask::{FieldMasks, MaskedValue};
use crate::piece::Piece;
use crate::writer::RowEncoder;
use crate::{Error, Layout};

/// Makes pieces of one file from the rows of one reader.
///
/// Several encoders of one layout can make pieces of one file. The pieces may be concatenated in any order.
pub struct Encoder {
    rows: Box<dyn RowEncoder>,
    masks: FieldMasks,
    /// The values of masked columns in the last row.
    masked: Vec<MaskedValue>,
}

impl Encoder {
    /// Makes an encoder without rows.
    pub fn new(layout: &Layout) -> Encoder {
        Encoder { rows: layout.writer.encoder(), masks: layout.masks.clone(), masked: Vec::new() }
    }

    /// Encodes a row, given as the binary form of each field. `None` is NULL.
    ///
    /// # Errors
    /// If a field doesn't fit its column. The encoder then holds half a row and must be dropped.
    pub fn row(&mut self, fields: &[Option<&[u8]>]) -> Result<(), Error> {
        if self.masks.are_none() {
            return self.rows.append(fields);
        }
        let fields = self.masks.replace(fields, &mut self.masked)?;
        self.rows.append(&fields)
    }

    /// Returns true if the rows since the last piece are enough for another piece.
    pub fn is_full(&self) -> bool {
        self.rows.is_full()
    }

    /// Returns true if there is no row since the last piece.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Makes a piece of the rows since the last one.
    ///
    /// # Errors
    /// If memory runs out, or the format's library fails.
    pub fn pack(&mut self) -> Result<Piece, Error> {
        self.rows.finish()
    }
}
