//! The seam between a format and the rest of the crate: its writer, the encoders of its rows, the assembler of its
//! file.
//!
//! A format is a file of this crate that implements these three traits. It knows no threads and no other format.

use crate::Error;
use crate::piece::Piece;

/// Writes files of one format. Made once for an export, and shared by its readers and its files.
pub(crate) trait FormatWriter: Send + Sync {
    fn encoder(&self) -> Box<dyn RowEncoder>;

    /// Begins a file. Returns its assembler, and the bytes before the first row.
    fn begin(&self) -> Result<(Box<dyn FileAssembler>, Vec<u8>), Error>;
}

pub(crate) trait RowEncoder: Send {
    /// Encodes a row, given as the binary form of each field. `None` is NULL.
    /// After an error, the encoder holds half a row and must be dropped.
    fn append(&mut self, fields: &[Option<&[u8]>]) -> Result<(), Error>;

    fn is_full(&self) -> bool;

    fn is_empty(&self) -> bool;

    /// Makes a piece of the rows, and begins anew.
    fn finish(&mut self) -> Result<Piece, Error>;
}

/// Puts the pieces of one file behind one another, in the order of the calls.
pub trait FileAssembler: Send {
    /// Returns the bytes of the file for a piece.
    ///
    /// # Errors
    /// If memory runs out, or the piece is of another layout.
    fn append(&mut self, piece: Piece) -> Result<Vec<u8>, Error>;

    /// Returns the bytes behind the last piece.
    ///
    /// # Errors
    /// If memory runs out, or the format's library fails.
    fn finish(self: Box<Self>) -> Result<Vec<u8>, Error>;
}
