//! How a file is written: its format, and what that is compressed with.

crate::words! {
    /// How a file's rows are written.
    Format, "a format: csv, ndjson, parquet" {
        /// RFC 4180, as `COPY … FROM … CSV HEADER` reads it.
        Csv = "csv",
        /// A JSON object on each line.
        Ndjson = "ndjson",
        /// Apache Parquet.
        Parquet = "parquet",
    }
}

crate::words! {
    /// What a file is compressed with, as a whole.
    Compression, "a compression: none, gzip, zstd" {
        /// Nothing.
        None = "none",
        /// Members by RFC 1952.
        Gzip = "gzip",
        /// Frames by RFC 8878.
        Zstd = "zstd",
    }
}

impl Format {
    /// Whether this build writes it.
    pub fn is_built(self) -> bool {
        match self {
            Format::Csv | Format::Ndjson => true,
            Format::Parquet => cfg!(feature = "parquet"),
        }
    }
}

/// A format and a compression that don't go together.
#[derive(Debug, thiserror::Error)]
pub enum BadEncoding {
    /// The build has none of it.
    #[error("this build has no {0}: build it with `cargo build --release --features full`")]
    NotBuilt(Format),
    /// It would be compressed twice.
    #[error("{0} is compressed inside: leave the compression out")]
    CompressedInside(Format),
}

/// How a file is written: its format, and what that is compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// How its rows are written.
    pub format: Format,
    /// What that is compressed with.
    pub compression: Compression,
}

impl Encoding {
    /// As somebody asks for it.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn new(format: Format, compression: Compression) -> Result<Encoding, BadEncoding> {
        match format {
            _ if !format.is_built() => Err(BadEncoding::NotBuilt(format)),
            Format::Parquet if compression != Compression::None => Err(BadEncoding::CompressedInside(format)),
            Format::Csv | Format::Ndjson | Format::Parquet => Ok(Encoding { format, compression }),
        }
    }

    /// The media type of a download. What is compressed is sent as it is: a `Content-Encoding` would have clients unpack it.
    pub fn media_type(self) -> &'static str {
        match (self.compression, self.format) {
            (Compression::None, Format::Csv) => "text/csv; charset=utf-8; header=present",
            (Compression::None, Format::Ndjson) => "application/x-ndjson",
            (Compression::None, Format::Parquet) => "application/vnd.apache.parquet",
            (Compression::Gzip, _) => "application/gzip",
            (Compression::Zstd, _) => "application/zstd",
        }
    }
}
