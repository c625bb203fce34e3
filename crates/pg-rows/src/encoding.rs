//! The formats and compressions of a file, and the table of facts about each format.
//!
//! Code that needs a property of a format, other than its bytes, reads [`Format::spec`]. This file knows no writer.

crate::words! {
    /// The format of a file.
    Format, "a format:" {
        /// RFC 4180, as `COPY … FROM … CSV HEADER` reads it.
        Csv = "csv",
        /// A JSON object on each line.
        Ndjson = "ndjson",
        /// Apache Parquet.
        Parquet = "parquet",
    }
}

crate::words! {
    /// The compression of a file: around it, or of the pages inside a Parquet file.
    Compression, "a compression:" {
        /// Nothing.
        None = "none",
        /// Members by RFC 1952.
        Gzip = "gzip",
        /// Frames by RFC 8878.
        Zstd = "zstd",
        /// Snappy; only inside Parquet.
        Snappy = "snappy",
        /// Blocks of LZ4, Parquet's `LZ4_RAW`; only inside Parquet.
        Lz4 = "lz4",
    }
}

const AROUND: &[Compression] = &[Compression::None, Compression::Gzip, Compression::Zstd];

/// The facts about a format that callers need without reading its bytes.
#[derive(Debug)]
pub struct FormatSpec {
    /// The ending of an uncompressed file's name, with its dot.
    pub extension: &'static str,
    /// The media type of an uncompressed file, with its parameters.
    pub media_type: &'static str,
    /// The compressions that the format has, the default first.
    pub compressions: &'static [Compression],
    /// True if the format compresses its own content. Nothing is compressed around such a file.
    pub is_compressed_inside: bool,
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
            Format::Csv => &FormatSpec {
                extension: ".csv",
                media_type: "text/csv; charset=utf-8; header=present",
                compressions: AROUND,
                is_compressed_inside: false,
                is_binary: false,
                has_header: true,
                is_built: true,
            },
            Format::Ndjson => &FormatSpec {
                extension: ".ndjson",
                media_type: "application/x-ndjson",
                compressions: AROUND,
                is_compressed_inside: false,
                is_binary: false,
                has_header: false,
                is_built: true,
            },
            Format::Parquet => &FormatSpec {
                extension: ".parquet",
                media_type: "application/vnd.apache.parquet",
                compressions: &[Compression::Zstd, Compression::Snappy, Compression::Lz4, Compression::None],
                is_compressed_inside: true,
                is_binary: true,
                has_header: false,
                is_built: cfg!(feature = "parquet"),
            },
        }
    }
}

impl Compression {
    /// Returns the ending of a file that is compressed as a whole, with its dot. It is empty if there is no such file.
    const fn extension(self) -> &'static str {
        match self {
            Compression::None | Compression::Snappy | Compression::Lz4 => "",
            Compression::Gzip => ".gz",
            Compression::Zstd => ".zst",
        }
    }

    /// Returns the media type of a file that is compressed as a whole, or `None` if there is no such file.
    pub const fn media_type(self) -> Option<&'static str> {
        match self {
            Compression::None | Compression::Snappy | Compression::Lz4 => None,
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
    /// The format doesn't have the compression.
    #[error("{format} has no {compression}: its compressions are {}", words(format.spec().compressions))]
    NoCompression {
        /// The format.
        format: Format,
        /// The compression that it lacks.
        compression: Compression,
    },
}

impl BadEncoding {
    /// Returns the name of the invalid member of a request or block: `format` or `compression`.
    pub const fn member(&self) -> &'static str {
        match self {
            BadEncoding::NotBuilt(_) => "format",
            BadEncoding::NoCompression { .. } => "compression",
        }
    }
}

fn words(compressions: &[Compression]) -> String {
    compressions.iter().map(|compression| compression.as_str()).collect::<Vec<_>>().join(", ")
}

/// The format of a file and its compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// The format of the rows.
    pub format: Format,
    /// The compression around the file, or inside it if the format compresses its own content.
    pub compression: Compression,
}

impl Encoding {
    /// Checks that this build can write the format, and that the format has the compression. `None` is the format's
    /// default.
    ///
    /// # Errors
    /// [`BadEncoding`] names the unsupported format or combination.
    ///
    /// ```
    /// use pg_rows::encoding::{Compression, Encoding, Format};
    ///
    /// let encoding = Encoding::new(Format::Csv, Some(Compression::Zstd))?;
    /// assert_eq!((encoding.extension().as_str(), encoding.media_type()), (".csv.zst", "application/zstd"));
    /// assert_eq!(Encoding::new(Format::Csv, None)?.compression, Compression::None);
    /// let error = Encoding::new(Format::Csv, Some(Compression::Lz4)).unwrap_err();
    /// assert_eq!(error.to_string(), "csv has no lz4: its compressions are none, gzip, zstd");
    /// # Ok::<(), pg_rows::encoding::BadEncoding>(())
    /// ```
    pub fn new(format: Format, compression: Option<Compression>) -> Result<Encoding, BadEncoding> {
        let spec = format.spec();
        if !spec.is_built {
            return Err(BadEncoding::NotBuilt(format));
        }
        let compression = compression.unwrap_or(spec.compressions[0]);
        if !spec.compressions.contains(&compression) {
            return Err(BadEncoding::NoCompression { format, compression });
        }
        Ok(Encoding { format, compression })
    }

    fn around(self) -> Compression {
        if self.format.spec().is_compressed_inside { Compression::None } else { self.compression }
    }

    /// Returns the ending of a file's name, with its dots.
    pub fn extension(self) -> String {
        format!("{}{}", self.format.spec().extension, self.around().extension())
    }

    /// Returns the media type of a download.
    ///
    /// A file that is compressed as a whole has the type of its compression. With a `Content-Encoding` header, clients
    /// would decompress it.
    pub fn media_type(self) -> &'static str {
        self.around().media_type().unwrap_or(self.format.spec().media_type)
    }
}
