//! Compresses a file as independent frames, which any decompressor reads one behind the other.
//!
//! A gzip file may have many members (RFC 1952, 2.2) and a zstd file many frames (RFC 8878, 3). A frame costs a few
//! bytes and a little of the ratio. In return a compressor needs no more than one frame's memory.

use std::io;

use libdeflater::CompressionLvl;
use zstd::bulk;
use zstd::zstd_safe::compress_bound;

use crate::Error;
use crate::encoding::Compression;

/// The uncompressed bytes of a frame. A longer row makes a larger frame.
pub(super) const FRAME_BYTES: usize = 1 << 20;

/// The fastest level. Level 6 takes two and a half times as long and makes files a twentieth smaller
/// (docs/PERFORMANCE.md).
const GZIP_LEVEL: u8 = 1;
const ZSTD_LEVEL: u8 = 1;
const MOST_GZIP: u8 = 12;

pub(super) enum Compressor {
    Gzip(libdeflater::Compressor),
    /// Makes frames with a checksum.
    Zstd(bulk::Compressor<'static>),
}

impl Compressor {
    /// Makes a compressor of this level, 1 to 19; `None` is the codec's own. Gzip takes a level above 12 as 12.
    pub(super) fn new(compression: Compression, level: Option<u8>) -> Result<Compressor, Error> {
        Ok(match compression {
            Compression::Gzip => {
                let level = CompressionLvl::new(level.unwrap_or(GZIP_LEVEL).min(MOST_GZIP).into());
                Compressor::Gzip(libdeflater::Compressor::new(level.unwrap_or_default()))
            }
            Compression::Zstd => {
                let level = level.unwrap_or(ZSTD_LEVEL).into();
                let mut zstd = bulk::Compressor::new(level).map_err(Error::Compressor)?;
                zstd.include_checksum(true).map_err(Error::Compressor)?;
                Compressor::Zstd(zstd)
            }
            Compression::None | Compression::Snappy | Compression::Lz4 => {
                return Err(Error::Compressor(io::ErrorKind::Unsupported.into()));
            }
        })
    }

    /// Compresses bytes as one frame, and replaces the content of `out` by it.
    pub(super) fn frame(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        out.clear();
        match self {
            Compressor::Gzip(gzip) => member(gzip, plain, out),
            Compressor::Zstd(zstd) => {
                out.reserve(compress_bound(plain.len()));
                zstd.compress_to_buffer(plain, out).map(drop)
            }
        }
        .map_err(Error::Compressor)
    }

    /// Appends the text of a frame of this compression. `text_bytes` is the size of the text.
    pub(super) fn unpack(&self, frame: &[u8], text_bytes: usize, text: &mut Vec<u8>) -> Result<(), Error> {
        let begin = text.len();
        match self {
            Compressor::Gzip(_) => {
                text.resize(begin + text_bytes, 0);
                let unpacked = libdeflater::Decompressor::new().gzip_decompress(frame, &mut text[begin..]);
                unpacked.map_err(|why| Error::Compressor(io::Error::other(why)))?;
            }
            Compressor::Zstd(_) => {
                text.append(&mut bulk::decompress(frame, text_bytes).map_err(Error::Compressor)?);
            }
        }
        Ok(())
    }
}

fn member(gzip: &mut libdeflater::Compressor, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    out.resize(gzip.gzip_compress_bound(plain.len()), 0);
    let bytes = gzip.gzip_compress(plain, out).map_err(io::Error::other)?;
    out.truncate(bytes);
    Ok(())
}

#[cfg(test)]
pub(super) fn unpacked(compression: Compression, packed: &[u8]) -> Vec<u8> {
    use std::io::Read;

    let mut plain = Vec::new();
    match compression {
        Compression::None => plain.extend_from_slice(packed),
        Compression::Gzip => {
            flate2::read::MultiGzDecoder::new(packed).read_to_end(&mut plain).unwrap();
        }
        Compression::Zstd => {
            zstd::Decoder::new(packed).unwrap().read_to_end(&mut plain).unwrap();
        }
        Compression::Snappy | Compression::Lz4 => panic!("{compression} is only inside Parquet"),
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_beyond_a_codecs_own_is_its_highest() {
        let packed = |level| {
            let (mut compressor, mut out) = (Compressor::new(Compression::Gzip, level).unwrap(), Vec::new());
            compressor.frame(include_bytes!("compress.rs"), &mut out).unwrap();
            out
        };
        assert!(packed(Some(19)) == packed(Some(12)));
        assert!(packed(Some(12)).len() < packed(Some(1)).len());
    }
}
