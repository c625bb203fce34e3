//! The assembler of a file: pieces of one layout, in any order.

use crate::piece::Piece;
use crate::writer::FileAssembler;
use crate::{Error, Layout};

/// Puts the pieces of a file behind one another.
///
/// A call fails if memory runs out or the format's library fails.
pub struct Assembler(Box<dyn FileAssembler>);

impl Assembler {
    /// Begins a file. Returns its assembler, and the bytes before the first row.
    ///
    /// # Errors
    /// If memory runs out, or the format's library fails.
    pub fn begin(layout: &Layout) -> Result<(Assembler, Vec<u8>), Error> {
        let (assembler, begin) = layout.writer.begin()?;
        Ok((Assembler(assembler), begin))
    }

    /// Returns the bytes of the file for a piece.
    ///
    /// # Errors
    /// If memory runs out, or the piece is of another layout.
    pub fn append(&mut self, piece: Piece) -> Result<Vec<u8>, Error> {
        self.0.append(piece)
    }

    /// Returns the bytes behind the last piece.
    ///
    /// # Errors
    /// If memory runs out, or the format's library fails.
    pub fn finish(self) -> Result<Vec<u8>, Error> {
        self.0.finish()
    }
}
