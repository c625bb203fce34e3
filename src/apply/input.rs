//! Unpacks the bytes of an exported file, and verifies their SHA-256.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use ring::digest::{Context, SHA256};

/// The unpacked bytes of a file. The last read fails if the file is not the exported one.
pub type Input = Box<dyn Read + Send>;

/// Returns a reader of the unpacked bytes of a file with this compression and SHA-256.
///
/// # Errors
/// If this version doesn't know the compression.
pub fn unpacked(file: impl Read + Send + 'static, compression: &str, sha256: &str) -> io::Result<Input> {
    let file = ChecksumReader { file, hash: Context::new(&SHA256), sha256: sha256.to_owned() };
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
    hash: Context,
    sha256: String,
}

impl<R: Read> Read for ChecksumReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hash.update(&buffer[..read]);
        if read == 0 && !buffer.is_empty() && hex::encode(self.hash.clone().finish()) != self.sha256 {
            return Err(io::Error::other("it is not the file that was exported: it has another SHA-256"));
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
            let read = |sha256: &str| {
                let mut unpacked = Vec::new();
                super::unpacked(io::Cursor::new(packed.clone()), compression, sha256)?.read_to_end(&mut unpacked)?;
                io::Result::Ok(unpacked)
            };
            assert_eq!(read(&sha256).unwrap(), text.repeat(times), "{compression}");
            assert!(read(&"0".repeat(64)).unwrap_err().to_string().contains("SHA-256"), "{compression}");
        }
        assert!(super::unpacked(io::empty(), "lz4", "").is_err());
    }
}
