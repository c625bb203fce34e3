//! Rows to pieces of a file, where they arrive.

use std::sync::Arc;

use crate::compress::{self, Compressor};
use crate::encoding::{Compression, Format};
#[cfg(feature = "parquet")]
use crate::parquet;
use crate::{Error, Layout, csv, ndjson};

/// A file that holds this much text makes a piece of it: large enough that handing it over costs nothing, small enough to stay in a
/// processor's cache until it is written.
const TEXT_BYTES: usize = 256 << 10;

/// Makes pieces of a file of the rows that one reader reads. Several encoders of one layout make pieces of one file, which may stand in
/// any order.
pub struct Encoder {
    layout: Arc<Layout>,
    form: Form,
    /// The text of the rows that are in no piece yet.
    text: Vec<u8>,
    /// Made with the first piece.
    compressor: Option<Compressor>,
}

enum Form {
    Csv,
    Ndjson(ndjson::Encoder),
    #[cfg(feature = "parquet")]
    Parquet(parquet::GroupEncoder),
}

/// A piece of a file, packed: whole rows.
pub struct Piece(pub(super) Content);

pub(super) enum Content {
    /// Bytes that stand in the file as they are.
    Bytes(Vec<u8>),
    #[cfg(feature = "parquet")]
    RowGroup(parquet::RowGroup),
}

impl Encoder {
    /// For rows of a file's columns.
    pub fn new(layout: &Arc<Layout>) -> Encoder {
        let form = match layout.encoding.format {
            Format::Csv => Form::Csv,
            Format::Ndjson => Form::Ndjson(ndjson::Encoder::new(layout.columns.clone())),
            #[cfg(feature = "parquet")]
            Format::Parquet => Form::Parquet(parquet::GroupEncoder::new(&layout.columns)),
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => unreachable!("no layout of it is made"),
        };
        Encoder { layout: Arc::clone(layout), form, text: Vec::new(), compressor: None }
    }

    /// Takes a row, given as its fields' binary forms.
    ///
    /// # Errors
    /// If a field doesn't fit its column; the encoder then holds half a row.
    pub fn row(&mut self, fields: &[Option<&[u8]>]) -> Result<(), Error> {
        match &mut self.form {
            Form::Csv => csv::row(&self.layout.columns, fields, &mut self.text),
            Form::Ndjson(ndjson) => ndjson.row(fields, &mut self.text),
            #[cfg(feature = "parquet")]
            Form::Parquet(parquet) => parquet.row(&self.layout.columns, fields),
        }
    }

    /// Whether it holds the rows of a piece.
    pub fn is_full(&self) -> bool {
        match &self.form {
            Form::Csv | Form::Ndjson(_) => self.text.len() >= self.text_bytes(),
            #[cfg(feature = "parquet")]
            Form::Parquet(parquet) => parquet.is_full(),
        }
    }

    fn text_bytes(&self) -> usize {
        match self.layout.encoding.compression {
            Compression::None => TEXT_BYTES,
            Compression::Gzip | Compression::Zstd => compress::FRAME_BYTES,
        }
    }

    /// Whether it holds no row.
    pub fn is_empty(&self) -> bool {
        match &self.form {
            Form::Csv | Form::Ndjson(_) => self.text.is_empty(),
            #[cfg(feature = "parquet")]
            Form::Parquet(parquet) => parquet.is_empty(),
        }
    }

    /// Makes a piece of the rows that it holds.
    ///
    /// # Errors
    /// If there is no memory for it, or the format's writer fails: a defect.
    pub fn pack(&mut self) -> Result<Piece, Error> {
        match &mut self.form {
            Form::Csv | Form::Ndjson(_) => {}
            #[cfg(feature = "parquet")]
            Form::Parquet(parquet) => {
                let layout = self.layout.parquet.as_ref().expect("the format is Parquet");
                return Ok(Piece(Content::RowGroup(parquet.pack(layout, &self.layout.columns)?)));
            }
        }
        if self.layout.encoding.compression == Compression::None {
            // The next piece is about as large.
            let room = Vec::with_capacity(self.text.len());
            return Ok(Piece(Content::Bytes(std::mem::replace(&mut self.text, room))));
        }
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => none.insert(self.layout.compressor()?),
        };
        let mut packed = Vec::new();
        compressor.frame(&self.text, &mut packed)?;
        self.text.clear();
        Ok(Piece(Content::Bytes(packed)))
    }
}
