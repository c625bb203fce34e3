//! Counts the rows of a file while its bytes are read.

use std::io::{self, Write};

use crate::manifest::line_counter::{LineCounter, UnpackLimits};
use crate::sink::ArchivedFile;
use flate2::write::MultiGzDecoder;
use pg_rows::encoding::{Compression, Format};
use zstd::stream::{raw, zio};

/// Unpacks a file's bytes, and counts their rows.
pub(super) enum RowCounter {
    Plain(LineCounter),
    Gzip(Box<MultiGzDecoder<LineCounter>>),
    Zstd(Box<zio::Writer<LineCounter, raw::Decoder<'static>>>),
}

impl RowCounter {
    /// Creates a counter for this format and compression. Returns `None` if the format has no lines, or if no file of
    /// the format has the compression.
    pub(super) fn new(format: &str, compression: &str, limits: UnpackLimits) -> Option<io::Result<RowCounter>> {
        let spec = format.parse::<Format>().ok()?.spec();
        if spec.is_binary {
            return None;
        }
        let rows = LineCounter::new(spec.has_header, limits);
        Some(match compression.parse().ok()? {
            Compression::None => Ok(RowCounter::Plain(rows)),
            Compression::Gzip => Ok(RowCounter::Gzip(Box::new(MultiGzDecoder::new(rows)))),
            Compression::Zstd => {
                raw::Decoder::new().map(|decoder| RowCounter::Zstd(Box::new(zio::Writer::new(rows, decoder))))
            }
            Compression::Snappy | Compression::Lz4 => return None,
        })
    }

    /// Counts the rows in the next bytes.
    ///
    /// # Errors
    /// If the bytes can't be unpacked, or exceed the limits.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            RowCounter::Plain(rows) => rows.write_all(bytes),
            RowCounter::Gzip(decoder) => decoder.write_all(bytes),
            RowCounter::Zstd(decoder) => decoder.write_all(bytes),
        }
    }

    /// Returns the number of rows.
    ///
    /// # Errors
    /// If the compressed data is incomplete.
    pub(super) fn finish(self) -> io::Result<u64> {
        match self {
            RowCounter::Plain(rows) => Ok(rows.count()),
            RowCounter::Gzip(decoder) => Ok(decoder.finish()?.count()),
            RowCounter::Zstd(mut decoder) => {
                decoder.finish()?;
                Ok(decoder.into_inner().0.count())
            }
        }
    }
}

/// Reads the number of rows from the footer of a Parquet file with this number of bytes.
///
/// # Errors
/// If the file isn't Parquet, or can't be read.
#[cfg(feature = "parquet")]
pub(super) fn rows_of_parquet(bytes: u64, file: &dyn ArchivedFile) -> io::Result<u64> {
    use parquet::file::metadata::{FooterTail, ParquetMetaDataReader};

    /// The maximum size of a footer, in bytes.
    const MAX_FOOTER_BYTES: u64 = 16 << 20;

    let mut end = [0; 8];
    let end_at = bytes.checked_sub(8).ok_or_else(|| io::Error::other("it is too short for Parquet"))?;
    file.read_at(&mut end, end_at)?;
    let length = FooterTail::try_new(&end).map_err(io::Error::other)?.metadata_length();
    let from = end_at.checked_sub(length as u64).filter(|_| length as u64 <= MAX_FOOTER_BYTES);
    let from = from.ok_or_else(|| io::Error::other("its footer is too long"))?;
    let mut footer = vec![0; length];
    file.read_at(&mut footer, from)?;
    let found = ParquetMetaDataReader::decode_metadata(&footer).map_err(io::Error::other)?;
    Ok(found.row_groups().iter().map(|group| group.num_rows().unsigned_abs()).sum())
}

/// Returns an error, because this build can't read Parquet.
#[cfg(not(feature = "parquet"))]
pub(super) fn rows_of_parquet(_bytes: u64, _file: &dyn ArchivedFile) -> io::Result<u64> {
    Err(io::Error::other(
        "this build can't count the rows of Parquet: build it with `cargo build --release --features full`",
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LIMITS: UnpackLimits = UnpackLimits { rows: 10, bytes: 1000 };

    fn count(format: &str, compression: &str, packed: &[u8], chunk_bytes: usize) -> io::Result<u64> {
        let mut counter = RowCounter::new(format, compression, LIMITS).unwrap()?;
        packed.chunks(chunk_bytes).try_for_each(|chunk| counter.feed(chunk))?;
        counter.finish()
    }

    #[test]
    fn rows_are_counted_through_every_compression() {
        let csv = "id,text\n1,\"a\nb\"\n2,\"\"\"\n\"\n\n3,\n";
        for (format, text, rows) in
            [("csv", csv, 4), ("csv", "id\n", 0), ("csv", "id\n1", 1), ("ndjson", "{}\n{}\n", 2), ("ndjson", "", 0)]
        {
            let (one, two) = text.split_at(text.len() / 2);
            let gzip = |part: &str| {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(part.as_bytes()).unwrap();
                encoder.finish().unwrap()
            };
            // Exports consist of several gzip members or zstd frames.
            let gzipped = [gzip(one), gzip(two)].concat();
            let zstd = |part: &str| zstd::encode_all(part.as_bytes(), 1).unwrap();
            let zstded = [zstd(one), zstd(two)].concat();
            for chunk_bytes in [1, 7, 1 << 20] {
                assert_eq!(count(format, "none", text.as_bytes(), chunk_bytes).unwrap(), rows, "{text:?}");
                assert_eq!(count(format, "gzip", &gzipped, chunk_bytes).unwrap(), rows, "{text:?}");
                assert_eq!(count(format, "zstd", &zstded, chunk_bytes).unwrap(), rows, "{text:?}");
            }
            assert!(count(format, "gzip", &gzipped[..gzipped.len() - 1], 7).is_err());
            assert!(count(format, "zstd", &zstded[..zstded.len() - 1], 7).is_err(), "{text:?}");
        }
        assert!(count("csv", "gzip", b"id\n1\n", 7).is_err());
        assert!(count("csv", "zstd", b"id\n1\n", 7).is_err());
        let is_unknown = |format, compression| RowCounter::new(format, compression, LIMITS).is_none();
        assert!(is_unknown("parquet", "none") && is_unknown("csv", "lzma"));
    }
}
