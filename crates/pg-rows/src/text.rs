//! Writes text formats as lines, in separately compressed frames. A decompressor reads the frames in sequence.
//! A file of little text is one frame, because some decompressors read no further.
//!
//! `csv` and `ndjson` encode the lines.

use crate::column::Column;
use crate::compress::{self, Compressor};
use crate::encoding::Compression;
use crate::piece::Piece;
use crate::writer::{FileAssembler, FormatWriter, RowEncoder};
use crate::{Error, value};

/// The size of a piece in bytes of uncompressed text. It is large enough to make the cost of a handover small, and
/// small enough for the processor's cache.
const TEXT_BYTES: usize = 256 << 10;

/// The lines of one text format.
pub(crate) trait Lines: Clone + Send + Sync + 'static {
    fn new(columns: &[Column]) -> Self;

    /// Appends the lines before the first row.
    fn header(&self, columns: &[Column], out: &mut Vec<u8>);

    /// Appends the line of a row, which has a field for each column.
    fn row(&self, columns: &[Column], fields: &[Option<&[u8]>], out: &mut Vec<u8>) -> Result<(), Error>;
}

#[derive(Clone)]
pub(crate) struct TextWriter<L> {
    lines: L,
    columns: Vec<Column>,
    compression: Compression,
    level: Option<u8>,
}

impl<L: Lines> TextWriter<L> {
    /// Prepares files of these columns, compressed at this level. `None` means the codec's default.
    pub(crate) fn new(columns: Vec<Column>, compression: Compression, level: Option<u8>) -> TextWriter<L> {
        TextWriter { lines: L::new(&columns), columns, compression, level }
    }

    fn compressor(&self) -> Result<Compressor, Error> {
        Compressor::new(self.compression, self.level)
    }
}

impl<L: Lines> FormatWriter for TextWriter<L> {
    fn encoder(&self) -> Box<dyn RowEncoder> {
        Box::new(TextEncoder { writer: self.clone(), text: Vec::new(), compressor: None })
    }

    fn begin(&self) -> Result<(Box<dyn FileAssembler>, Vec<u8>), Error> {
        let mut header = Vec::new();
        self.lines.header(&self.columns, &mut header);
        if self.compression == Compression::None {
            return Ok((Box::new(TextAssembler { first: None }), header));
        }
        let first = Some((self.compressor()?, header));
        Ok((Box::new(TextAssembler { first }), Vec::new()))
    }
}

struct TextEncoder<L> {
    writer: TextWriter<L>,
    text: Vec<u8>,
    compressor: Option<Compressor>,
}

impl<L: Lines> RowEncoder for TextEncoder<L> {
    fn append(&mut self, fields: &[Option<&[u8]>]) -> Result<(), Error> {
        value::require_shape(&self.writer.columns, fields)?;
        self.writer.lines.row(&self.writer.columns, fields, &mut self.text)
    }

    fn is_full(&self) -> bool {
        self.text.len()
            >= match self.writer.compression {
                Compression::None => TEXT_BYTES,
                _ => compress::FRAME_BYTES,
            }
    }

    fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    fn finish(&mut self) -> Result<Piece, Error> {
        if self.writer.compression == Compression::None {
            // The next piece has about the same size. A buffer that is a row too small would be doubled, and the
            // system maps one of that size anew each time (`return_freed_buffers_to_system` in `main.rs`).
            let room = Vec::with_capacity(self.text.len() + self.text.len() / 8);
            let text_bytes = self.text.len();
            return Ok(Piece::new(std::mem::replace(&mut self.text, room), text_bytes));
        }
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => none.insert(self.writer.compressor()?),
        };
        let mut packed = Vec::new();
        compressor.frame(&self.text, &mut packed)?;
        let piece = Piece::new(packed, self.text.len());
        self.text.clear();
        Ok(piece)
    }
}

/// Joins the header and the first pieces in one frame, and passes further pieces on unchanged.
struct TextAssembler {
    /// The text of the first frame. `None` once that frame is complete, and in a file that is not compressed.
    first: Option<(Compressor, Vec<u8>)>,
}

impl TextAssembler {
    /// Returns the first frame, or nothing if it is already complete.
    fn end_first_frame(&mut self) -> Result<Vec<u8>, Error> {
        let mut frame = Vec::new();
        if let Some((mut compressor, text)) = self.first.take() {
            compressor.frame(&text, &mut frame)?;
        }
        Ok(frame)
    }
}

impl FileAssembler for TextAssembler {
    fn append(&mut self, piece: Piece) -> Result<Vec<u8>, Error> {
        let Some((compressor, text)) = &mut self.first else { return Ok(piece.bytes) };
        compressor.unpack(&piece.bytes, piece.text_bytes, text)?;
        if text.len() > compress::FRAME_BYTES { self.end_first_frame() } else { Ok(Vec::new()) }
    }

    /// A file without lines has one empty frame, because a decompressor expects at least one.
    fn finish(mut self: Box<Self>) -> Result<Vec<u8>, Error> {
        self.end_first_frame()
    }
}
