//! Pieces to a file, in whatever order they come.

use std::sync::Arc;

use crate::encoding::Format;
#[cfg(feature = "parquet")]
use crate::parquet;
use crate::piece::{Content, Piece};
use crate::{Error, Layout, csv};

/// Puts the pieces of a file one behind the other. Every call fails if there is no memory for it, or the format's writer fails: a defect.
pub struct Assembler(Assembly);

enum Assembly {
    Text {
        layout: Arc<Layout>,
        is_empty: bool,
    },
    #[cfg(feature = "parquet")]
    Parquet(Box<parquet::Assembler>),
}

impl Assembler {
    /// Begins a file, and gives what stands before its rows.
    pub fn begin(layout: &Arc<Layout>) -> Result<(Assembler, Vec<u8>), Error> {
        #[cfg(feature = "parquet")]
        if let Some(parquet) = &layout.parquet {
            return Ok((Assembler(Assembly::Parquet(Box::new(parquet::Assembler::begin(parquet)?))), Vec::new()));
        }
        let mut begin = Vec::new();
        if layout.encoding.format == Format::Csv {
            let mut header = Vec::new();
            csv::header(&layout.columns, &mut header);
            layout.compressor()?.frame(&header, &mut begin)?;
        }
        Ok((Assembler(Assembly::Text { layout: Arc::clone(layout), is_empty: begin.is_empty() }), begin))
    }

    /// The bytes of a piece as they stand in the file.
    pub fn append(&mut self, piece: Piece) -> Result<Vec<u8>, Error> {
        match (&mut self.0, piece.0) {
            (Assembly::Text { is_empty, .. }, Content::Bytes(bytes)) => {
                *is_empty = false;
                Ok(bytes)
            }
            #[cfg(feature = "parquet")]
            (Assembly::Parquet(parquet), Content::RowGroup(group)) => parquet.append(group),
            #[cfg(feature = "parquet")]
            _ => unreachable!("pieces are of the file's own layout"),
        }
    }

    /// What stands behind the rows.
    pub fn finish(self) -> Result<Vec<u8>, Error> {
        match self.0 {
            Assembly::Text { layout, is_empty } => {
                let mut end = Vec::new();
                // An unpacker wants at least one frame, be it empty.
                if is_empty {
                    layout.compressor()?.frame(&[], &mut end)?;
                }
                Ok(end)
            }
            #[cfg(feature = "parquet")]
            Assembly::Parquet(parquet) => parquet.finish(),
        }
    }
}
