//! Compresses the pages of all columns with one compressor. The library's own makes one for each column of each row
//! group. In a table of 500 columns that took longer than the compression.

use std::io::Write;

use parquet::basic;
use parquet::column::page::{CompressedPage, Page, PageWriteSpec, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use zstd::bulk;
use zstd::zstd_safe::compress_bound;

pub(super) struct PageCompressor {
    codec: Codec,
    in_footer: basic::Compression,
    /// The dictionary of the column whose pages are written.
    dictionary: Option<Dictionary>,
}

/// The distinct values of a column in a row group.
#[derive(Clone, Copy)]
pub(super) struct Dictionary {
    pub(super) values: u32,
    pub(super) plain_bytes: usize,
}

enum Codec {
    None,
    Zstd(bulk::Compressor<'static>),
    Snappy(Box<snap::raw::Encoder>),
    /// Compresses a page as one block, without its size in front.
    Lz4,
}

impl PageCompressor {
    pub(super) fn new(in_footer: basic::Compression) -> Result<PageCompressor, ParquetError> {
        let codec = match in_footer {
            basic::Compression::UNCOMPRESSED => Codec::None,
            basic::Compression::ZSTD(level) => Codec::Zstd(bulk::Compressor::new(level.compression_level())?),
            basic::Compression::SNAPPY => Codec::Snappy(Box::new(snap::raw::Encoder::new())),
            basic::Compression::LZ4_RAW => Codec::Lz4,
            other => return Err(ParquetError::NYI(format!("the codec {other}"))),
        };
        Ok(PageCompressor { codec, in_footer, dictionary: None })
    }

    /// Returns a writer of a column's pages, which the column must not compress itself.
    pub(super) fn pages<'a, W: Write + Send>(&'a mut self, out: &'a mut TrackedWrite<W>) -> Pages<'a, W> {
        self.dictionary = None;
        Pages { out: SerializedPageWriter::new(out), codec: &mut self.codec, dictionary: &mut self.dictionary }
    }

    /// Returns the dictionary of the column whose pages were written last.
    pub(super) fn dictionary(&self) -> Option<Dictionary> {
        self.dictionary
    }

    /// Returns the footer's entry for a column whose pages this has compressed.
    pub(super) fn entry(&self, closed: ColumnCloseResult) -> Result<ColumnCloseResult, ParquetError> {
        let entry = closed.metadata.into_builder().set_compression(self.in_footer).build()?;
        Ok(ColumnCloseResult { metadata: entry, ..closed })
    }
}

pub(super) struct Pages<'a, W: Write> {
    out: SerializedPageWriter<'a, W>,
    codec: &'a mut Codec,
    dictionary: &'a mut Option<Dictionary>,
}

impl<W: Write + Send> PageWriter for Pages<'_, W> {
    fn write_page(&mut self, page: CompressedPage) -> Result<PageWriteSpec, ParquetError> {
        let plain_bytes = page.uncompressed_size();
        if let Page::DictionaryPage { num_values, .. } = page.compressed_page() {
            *self.dictionary = Some(Dictionary { values: *num_values, plain_bytes });
        }
        let compressed = match self.codec {
            Codec::None => return self.out.write_page(page),
            Codec::Zstd(zstd) => {
                let mut compressed = Vec::with_capacity(compress_bound(plain_bytes));
                zstd.compress_to_buffer(page.data(), &mut compressed)?;
                compressed
            }
            Codec::Snappy(snappy) => {
                snappy.compress_vec(page.data()).map_err(|error| ParquetError::External(error.into()))?
            }
            Codec::Lz4 => lz4_flex::block::compress(page.data()),
        };
        let mut page = page.compressed_page().clone();
        match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => *buf = compressed.into(),
            Page::DataPageV2 { .. } => return Err(ParquetError::General("a page of version 2".to_owned())),
        }
        self.out.write_page(CompressedPage::new(page, plain_bytes))
    }

    fn close(&mut self) -> Result<(), ParquetError> {
        self.out.close()
    }
}
