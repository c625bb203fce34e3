//! Compresses the pages of all columns with one compressor. The library's own makes one for each column of each row
//! group. In a table of 500 columns that took longer than the compression.

use std::io::Write;

use parquet::basic::{self, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriteSpec, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use zstd::bulk;
use zstd::zstd_safe::compress_bound;

/// Compresses pages with zstd.
pub(super) struct PageCompressor {
    zstd: bulk::Compressor<'static>,
    level: ZstdLevel,
}

impl PageCompressor {
    /// # Errors
    /// If memory runs out.
    pub(super) fn new(level: ZstdLevel) -> Result<PageCompressor, ParquetError> {
        Ok(PageCompressor { zstd: bulk::Compressor::new(level.compression_level())?, level })
    }

    /// Returns a writer of a column's pages, which the column must not compress itself.
    pub(super) fn pages<'a, W: Write + Send>(&'a mut self, out: &'a mut TrackedWrite<W>) -> Pages<'a, W> {
        Pages { out: SerializedPageWriter::new(out), zstd: &mut self.zstd }
    }

    /// Returns the footer's entry for a column whose pages this has compressed.
    pub(super) fn entry(&self, closed: ColumnCloseResult) -> Result<ColumnCloseResult, ParquetError> {
        let entry = closed.metadata.into_builder().set_compression(basic::Compression::ZSTD(self.level)).build()?;
        Ok(ColumnCloseResult { metadata: entry, ..closed })
    }
}

/// Writes the pages of a column, compressed.
pub(super) struct Pages<'a, W: Write> {
    out: SerializedPageWriter<'a, W>,
    zstd: &'a mut bulk::Compressor<'static>,
}

impl<W: Write + Send> PageWriter for Pages<'_, W> {
    fn write_page(&mut self, page: CompressedPage) -> Result<PageWriteSpec, ParquetError> {
        let plain_bytes = page.uncompressed_size();
        let mut compressed = Vec::with_capacity(compress_bound(plain_bytes));
        self.zstd.compress_to_buffer(page.data(), &mut compressed)?;
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
