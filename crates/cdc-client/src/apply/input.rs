//! Unpacks the bytes of an exported file, and verifies their SHA-256.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use ring::digest::{Context, SHA256};

use crate::apply::line_counter::LineCounter;
use cdc_manifest::ManifestFile;

/// The unpacked bytes of a file. The last read fails if the file is not the exported one.
pub(crate) type Input = Box<dyn Read + Send>;

/// Returns a reader of the unpacked rows of a CSV file with this compression. It opens the file at the first read and
/// closes it at the end, so an export may have more files than the process may open at once.
///
/// A read fails as soon as the file exceeds the rows or bytes that its manifest says.
pub(crate) fn unpacked<F: Read + Send + 'static>(
    open: impl FnOnce() -> io::Result<F> + Send + 'static,
    compression: &str,
    expected: &ManifestFile,
) -> Input {
    let counter = LineCounter::new(expected);
    let (compression, expected) = (compression.to_owned(), expected.clone());
    let open = Box::new(move || decoder(open()?, &compression, expected));
    Box::new(LazyReader { open: Some(open), opened: None, counter })
}

type Open = Box<dyn FnOnce() -> io::Result<Input> + Send>;

struct LazyReader {
    open: Option<Open>,
    opened: Option<Input>,
    counter: LineCounter,
}

impl Read for LazyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(open) = self.open.take() {
            self.opened = Some(open()?);
        }
        let Some(opened) = &mut self.opened else { return Ok(0) };
        let read = opened.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            self.opened = None;
        }
        self.counter.count(&buffer[..read])?;
        Ok(read)
    }
}

fn decoder(file: impl Read + Send + 'static, compression: &str, expected: ManifestFile) -> io::Result<Input> {
    let left = expected.bytes.parse().unwrap_or(0);
    let file = ChecksumReader { file, left, hash: Context::new(&SHA256), sha256: expected.sha256 };
    Ok(match compression {
        "none" => Box::new(file),
        "gzip" => Box::new(MultiGzDecoder::new(file)),
        "zstd" => Box::new(zstd::Decoder::new(file)?),
        other => {
            return Err(io::Error::other(format!("it has the compression `{other}`, which this version doesn't know")));
        }
    })
}

struct ChecksumReader<R> {
    file: R,
    left: u64,
    hash: Context,
    sha256: String,
}

impl<R: Read> Read for ChecksumReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("it is not the file that was exported: it has more bytes"))?;
        self.hash.update(&buffer[..read]);
        if read == 0 && !buffer.is_empty() {
            if hex::encode(self.hash.clone().finish()) != self.sha256 {
                return Err(io::Error::other("it is not the file that was exported: it has another SHA-256"));
            }
            if self.left > 0 {
                return Err(io::Error::other("it is not the file that was exported: it has fewer bytes"));
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use ring::digest::digest;

    use super::*;

    #[test]
    fn a_file_is_unpacked_and_checked() {
        let text = b"id,name\n1,a\n".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let mut gzip = gzip.finish().unwrap();
        gzip.extend(gzip.clone());
        let mut zstd = zstd::encode_all(&text[..], 1).unwrap();
        zstd.extend(zstd.clone());
        for (packed, compression, times) in [(text.clone(), "none", 1), (gzip, "gzip", 2), (zstd, "zstd", 2)] {
            let sha256 = hex::encode(digest(&SHA256, &packed));
            // Each text has a header and 1,999 lines behind it.
            let (rows, bytes) = (times * 2000 - 1, packed.len());
            let read = |sha256: &str, rows: usize, bytes: usize| {
                let (mut unpacked, file) = (Vec::new(), io::Cursor::new(packed.clone()));
                let sha256 = sha256.to_owned();
                let expected = ManifestFile { sha256, bytes: bytes.to_string(), rows: rows.to_string(), path: None };
                super::unpacked(|| Ok(file), compression, &expected).read_to_end(&mut unpacked)?;
                io::Result::Ok(unpacked)
            };
            assert_eq!(read(&sha256, rows, bytes).unwrap(), text.repeat(times), "{compression}");
            for (sha256, rows, bytes, why) in [
                (&*"0".repeat(64), rows, bytes, "SHA-256"),
                (&sha256, rows - 1, bytes, "more than"),
                (&sha256, rows, bytes - 1, "more bytes"),
                (&sha256, rows, bytes + 1, "fewer bytes"),
            ] {
                let error = read(sha256, rows, bytes).unwrap_err().to_string();
                assert!(error.contains(why), "{compression} {why}: {error}");
            }
        }
        let expected = ManifestFile { sha256: String::new(), bytes: String::new(), rows: String::new(), path: None };
        assert!(super::unpacked(|| Ok(io::empty()), "lz4", &expected).read(&mut [0]).is_err());
    }
}
