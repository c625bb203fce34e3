//! The word that the database stores for the compression of a job's files.
//!
//! Two releases may work on the same rows. An earlier release knows Parquet only with `none`, and compresses it with
//! zstd. So that word is stored for Parquet with zstd. Parquet without compression has a word of its own. An earlier
//! release leaves jobs alone whose word it doesn't know.

use pg_rows::encoding::{Compression, Encoding, Format};
use pg_rows::words::UnknownWord;

/// The word for Parquet without compression.
const UNCOMPRESSED: &str = "uncompressed";

/// Returns all words.
pub fn all() -> Vec<&'static str> {
    Compression::ALL.iter().map(|compression| compression.as_str()).chain([UNCOMPRESSED]).collect()
}

/// Returns the word for an encoding.
pub fn word(encoding: Encoding) -> &'static str {
    match (encoding.format, encoding.compression) {
        (Format::Parquet, Compression::Zstd) => Compression::None.as_str(),
        (Format::Parquet, Compression::None) => UNCOMPRESSED,
        (_, compression) => compression.as_str(),
    }
}

/// Reads the word of a job with this format.
///
/// # Errors
/// If this release doesn't know the format or the word.
pub fn read(format: &str, word: &str) -> Result<Encoding, UnknownWord> {
    let format = format.parse()?;
    let compression = match (format, word) {
        (Format::Parquet, UNCOMPRESSED) => Compression::None,
        (Format::Parquet, word) if word == Compression::None.as_str() => Compression::Zstd,
        (_, word) => word.parse()?,
    };
    Ok(Encoding { format, compression })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_is_read_back() {
        for format in Format::ALL {
            for compression in format.spec().compressions {
                let encoding = Encoding { format: *format, compression: *compression };
                assert_eq!(read(format.as_str(), word(encoding)).unwrap(), encoding);
                assert!(all().contains(&word(encoding)), "{encoding:?}");
            }
        }
    }

    #[test]
    fn parquet_of_an_earlier_release_is_zstd() {
        assert_eq!(read("parquet", "none").unwrap().compression, Compression::Zstd);
        assert_eq!(read("csv", "none").unwrap().compression, Compression::None);
        assert!(read("csv", UNCOMPRESSED).is_err() && read("csv", "brotli").is_err());
    }
}
