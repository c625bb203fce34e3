//! The formats and compressions of a file, and the table of facts about each format.
//!
//! Code that needs a property of a format, other than its bytes, reads [`Format::spec`]. This file knows no writer.

crate::words! {
    /// The format of a file.
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
    /// The compression of a whole file.
    Compression, "a compression: none, gzip, zstd" {
        /// Nothing.
        None = "none",
        /// Members by RFC 1952.
        Gzip = "gzip",
        /// Frames by RFC 8878.
        Zstd = "zstd",
    }
}

/// The facts about a format that callers need without reading its bytes.
#[derive(Debug)]
pub struct FormatSpec {
    /// The name in requests, logs and manifests.
    pub name: &'static str,
    /// The ending of an uncompressed file's name, with its dot.
    pub extension: &'static str,
    /// The media type of an uncompressed file, with its parameters.
    pub media_type: &'static str,
    /// The compressions that a whole file may have. A format that compresses its own content takes only
    /// [`Compression::None`].
    pub compressions: &'static [Compression],
    /// True if a file is not text.
    pub is_binary: bool,
    /// True if the file begins with a line of column names.
    pub has_header: bool,
    /// True if this build can write the format.
    pub is_built: bool,
}

impl Format {
    /// Returns the facts about this format.
    ///
    /// ```
    /// use pg_rows::encoding::Format;
    ///
    /// assert_eq!(Format::Ndjson.spec().extension, ".ndjson");
    /// assert!(Format::Parquet.spec().is_binary);
    /// ```
    pub const fn spec(self) -> &'static FormatSpec {
        match self {
            Format::Csv => {
                const {
                    &FormatSpec {
                        name: Format::Csv.as_str(),
                        extension: ".csv",
                        media_type: "text/csv; charset=utf-8; header=present",
                        compressions: Compression::ALL,
                        is_binary: false,
                        has_header: true,
                        is_built: true,
                    }
                }
            }
            Format::Ndjson => {
                const {
                    &FormatSpec {
                        name: Format::Ndjson.as_str(),
                        extension: ".ndjson",
                        media_type: "application/x-ndjson",
                        compressions: Compression::ALL,
                        is_binary: false,
                        has_header: false,
                        is_built: true,
                    }
                }
            }
            Format::Parquet => {
                const {
                    &FormatSpec {
                        name: Format::Parquet.as_str(),
                        extension: ".parquet",
                        media_type: "application/vnd.apache.parquet",
                        compressions: &[Compression::None],
                        is_binary: true,
                        has_header: false,
                        is_built: cfg!(feature = "parquet"),
                    }
                }
            }
        }
    }
}

impl Compression {
    /// Returns the ending that follows the format's extension, with its dot. It is empty for [`Compression::None`].
    pub const fn extension(self) -> &'static str {
        match self {
            Compression::None => "",
            Compression::Gzip => ".gz",
            Compression::Zstd => ".zst",
        }
    }

    /// Returns the media type of a compressed file, or `None` for [`Compression::None`].
    pub const fn media_type(self) -> Option<&'static str> {
        match self {
            Compression::None => None,
            Compression::Gzip => Some("application/gzip"),
            Compression::Zstd => Some("application/zstd"),
        }
    }
}

/// A format and a compression that no file can have together.
#[derive(Debug, thiserror::Error)]
pub enum BadEncoding {
    /// This build can't write the format.
    #[error("this build has no {0}: build it with `cargo build --release --features full`")]
    NotBuilt(Format),
    /// The format compresses its own content.
    #[error("{0} is compressed inside: leave the compression out")]
    CompressedInside(Format),
}

impl BadEncoding {
    /// Returns the name of the invalid member of a request or block: `format` or `compression`.
    pub const fn member(&self) -> &'static str {
        match self {
            BadEncoding::NotBuilt(_) => "format",
            BadEncoding::CompressedInside(_) => "compression",
        }
    }
}

/// The format of a file and the compression around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// The format of the rows.
    pub format: Format,
    /// The compression of the whole file.
    pub compression: Compression,
}

impl Encoding {
    /// Checks that this build can write the format, and that the format supports the compression.
    ///
    /// # Errors
    /// [`BadEncoding`] names the unsupported format or combination.
    ///
    /// ```
    /// use pg_rows::encoding::{Compression, Encoding, Format};
    ///
    /// let encoding = Encoding::new(Format::Csv, Compression::Zstd)?;
    /// assert_eq!((encoding.extension().as_str(), encoding.media_type()), (".csv.zst", "application/zstd"));
    /// assert!(Encoding::new(Format::Parquet, Compression::Gzip).is_err());
    /// # Ok::<(), pg_rows::encoding::BadEncoding>(())
    /// ```
    pub fn new(format: Format, compression: Compression) -> Result<Encoding, BadEncoding> {
        let spec = format.spec();
        if !spec.is_built {
            return Err(BadEncoding::NotBuilt(format));
        }
        if !spec.compressions.contains(&compression) {
            return Err(BadEncoding::CompressedInside(format));
        }
        Ok(Encoding { format, compression })
    }

    /// Returns the ending of a file's name, with its dots.
    pub fn extension(self) -> String {
        format!("{}{}", self.format.spec().extension, self.compression.extension())
    }

    /// Returns the media type of a download.
    ///
    /// A compressed file has the type of its compression. With a `Content-Encoding` header, clients would decompress
    /// it.
    pub fn media_type(self) -> &'static str {
        self.compression.media_type().unwrap_or(self.format.spec().media_type)
    }
}
