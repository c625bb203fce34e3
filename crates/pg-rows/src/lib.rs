//! Encodes rows in Postgres's binary form as CSV, JSON lines or Parquet.
//!
//! Several [`Encoder`]s of one [`Layout`] make [`Piece`]s of one file, each on its own thread. A [`FileAssembler`]
//! joins the pieces in any order. Everything is synchronous and does no I/O. The crate knows nothing of queries, jobs
//! or files.
//!
//! ```
//! use pg_rows::column::{Column, ColumnType};
//! use pg_rows::encoding::{Compression, Encoding, Format};
//! use pg_rows::row::BinaryRows;
//! use pg_rows::{Encoder, Layout};
//!
//! let encoding = Encoding { format: Format::Csv, compression: Compression::None };
//! let columns = vec![Column::new("id", ColumnType::Int2), Column::new("name", ColumnType::Text)];
//! let layout = Layout::new(encoding, columns, None)?;
//!
//! let mut encoder = Encoder::new(&layout);
//! let mut rows = BinaryRows::new(b"\0\x02\0\0\0\x02\0\x07\0\0\0\x03Ada");
//! let mut fields = Vec::new();
//! while rows.next_into(&mut fields)? {
//!     encoder.row(&fields)?;
//! }
//!
//! let (mut assembler, mut file) = layout.begin()?;
//! file.extend(assembler.append(encoder.pack()?)?);
//! file.extend(assembler.finish()?);
//! assert_eq!(file, b"id,name\n7,Ada\n");
//! # Ok::<(), pg_rows::Error>(())
//! ```

#![warn(missing_docs)]

pub mod column;
mod compress;
mod csv;
mod datetime;
mod digits;
mod encoder;
pub mod encoding;
mod float;
mod mask;
mod ndjson;
mod numeric;
#[cfg(feature = "parquet")]
mod parquet;
mod piece;
pub mod row;
mod text;
mod value;
pub mod words;
mod writer;

use std::error;

use crate::column::Column;
use crate::csv::Csv;
use crate::encoding::{BadEncoding, Compression, Encoding, Format};
use crate::mask::FieldMasks;
use crate::ndjson::Ndjson;
use crate::writer::FormatWriter;

pub use encoder::Encoder;
pub use piece::Piece;
pub use writer::FileAssembler;

/// The columns of a file, its format and its compression.
pub struct Layout {
    encoding: Encoding,
    masks: FieldMasks,
    writer: Box<dyn FormatWriter>,
}

impl Layout {
    /// Describes a file of exactly these columns, in this order.
    ///
    /// The level of gzip and zstd is 1 to 19; `None` is the codec's own. The other compressions have no levels.
    ///
    /// # Errors
    /// [`Error::Encoding`] if this build can't write the format, or if the format doesn't have the compression.
    pub fn new(encoding: Encoding, mut columns: Vec<Column>, level: Option<u8>) -> Result<Layout, Error> {
        let Encoding { format, compression } = encoding;
        Encoding::new(format, Some(compression))?;
        let masks = FieldMasks::take(&mut columns);
        let writer: Box<dyn FormatWriter> = match format {
            Format::Csv => Box::new(text::TextWriter::<Csv>::new(columns, compression, level)),
            Format::Ndjson => Box::new(text::TextWriter::<Ndjson>::new(columns, compression, level)),
            #[cfg(feature = "parquet")]
            Format::Parquet => Box::new(parquet::ParquetWriter::new(columns, compression, level)?),
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => return Err(BadEncoding::NotBuilt(format).into()),
        };
        Ok(Layout { encoding, masks, writer })
    }

    /// Begins a file. Returns its assembler, and the bytes before the first row.
    ///
    /// # Errors
    /// If memory runs out, or the format's library fails.
    pub fn begin(&self) -> Result<(Box<dyn FileAssembler>, Vec<u8>), Error> {
        self.writer.begin()
    }

    /// Returns true if [`Encoder::pack`] takes milliseconds, too long for a thread that others share.
    pub fn packs_long(&self) -> bool {
        self.encoding.compression != Compression::None || self.encoding.format.spec().is_binary
    }
}

/// Why a row or a file can't be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text is not UTF-8, which a database in `SQL_ASCII` allows.
    #[error("column `{column}` holds a text that is not UTF-8")]
    InvalidText {
        /// The column's name.
        column: String,
    },
    /// A field's size is not that of its type: the table changed under the export, or the caller has a defect.
    #[error("column `{column}` is not of the expected type")]
    WrongType {
        /// The column's name.
        column: String,
    },
    /// The number of fields is not the number of columns.
    #[error("a row of {found} fields where {expected} were expected")]
    WrongShape {
        /// Columns of the file.
        expected: usize,
        /// Fields of the row.
        found: usize,
    },
    /// The format has no form for a value.
    #[error(
        "column `{column}` holds {value}, for which the format has no form: csv and ndjson have one for every value, \
         and in Parquet the dataset's `unrepresentable` makes it NULL or a text"
    )]
    NotInFormat {
        /// The column's name.
        column: String,
        /// The value's text, as Postgres writes it.
        value: String,
    },
    /// No file can have the format and the compression.
    #[error(transparent)]
    Encoding(#[from] BadEncoding),
    /// The format's library failed, which is a defect.
    #[error("the {format} writer failed")]
    Library {
        /// The format.
        format: Format,
        /// The library's error.
        source: Box<dyn error::Error + Send + Sync>,
    },
    /// The compressor failed, for example because memory ran out.
    #[error("the file could not be compressed")]
    Compressor(#[source] std::io::Error),
    /// The bytes end inside a row.
    #[error(transparent)]
    CutShort(#[from] row::CutShort),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::column::ColumnType;
    use proptest::prelude::*;

    const KINDS: [ColumnType; 16] = [
        ColumnType::Int2,
        ColumnType::Int4,
        ColumnType::Int8,
        ColumnType::Float4,
        ColumnType::Float8,
        ColumnType::Numeric,
        ColumnType::Bool,
        ColumnType::Text,
        ColumnType::Uuid,
        ColumnType::Bytea,
        ColumnType::Json,
        ColumnType::Jsonb,
        ColumnType::Timestamptz,
        ColumnType::Timestamp,
        ColumnType::Date,
        ColumnType::Time,
    ];

    fn layout(format: Format, compression: Compression, columns: Vec<Column>) -> Result<Arc<Layout>, Error> {
        Layout::new(Encoding { format, compression }, columns, None).map(Arc::new)
    }

    /// Returns the text that a function appends for a value.
    pub(crate) fn written<T>(writer: fn(T, &mut Vec<u8>), value: T) -> String {
        let mut out = Vec::new();
        writer(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// Returns the encoded form of a row of one value.
    fn row(format: Format, kind: ColumnType, field: &[u8]) -> Result<Vec<u8>, Error> {
        let layout = layout(format, Compression::None, vec![Column::new("v", kind)])?;
        let mut encoder = Encoder::new(&layout);
        encoder.row(&[Some(field)])?;
        Ok(encoder.pack()?.bytes)
    }

    /// Joins pieces to a file.
    fn file(layout: &Arc<Layout>, pieces: impl IntoIterator<Item = Piece>) -> Vec<u8> {
        let (mut assembler, mut file) = layout.begin().unwrap();
        for piece in pieces {
            file.append(&mut assembler.append(piece).unwrap());
        }
        file.append(&mut assembler.finish().unwrap());
        file
    }

    #[test]
    fn pieces_of_several_encoders_are_one_file() {
        let columns = vec![Column::new("id", ColumnType::Int2), Column::new("name", ColumnType::Text)];
        for compression in Format::Csv.spec().compressions {
            let layout = layout(Format::Csv, *compression, columns.clone()).unwrap();
            let piece = |ids: std::ops::Range<i16>| {
                let mut encoder = Encoder::new(&layout);
                ids.for_each(|id| encoder.row(&[Some(&id.to_be_bytes()), Some(b"x")]).unwrap());
                encoder.pack().unwrap()
            };
            let unpacked = compress::unpacked(*compression, &file(&layout, [piece(2..4), piece(0..2)]));
            assert_eq!(String::from_utf8(unpacked).unwrap(), "id,name\n2,x\n3,x\n0,x\n1,x\n", "{compression}");
        }
    }

    fn text(format: Format, kind: ColumnType, field: &[u8]) -> String {
        String::from_utf8(row(format, kind, field).unwrap()).unwrap()
    }

    #[test]
    fn golden_bytes_of_every_kind() {
        let numeric = |sign: u16, scale: u16| {
            [2, 0, sign, scale, 7, 5000].into_iter().flat_map(u16::to_be_bytes).collect::<Vec<u8>>()
        };
        let nan = [0, 0, 0xC000, 0].into_iter().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
        let uuid = *b"\x01\x23\x45\x67\x89\xAB\xCD\xEF\x01\x23\x45\x67\x89\xAB\xCD\xEF";
        for (kind, field, csv, json) in [
            (ColumnType::Int2, &i16::MIN.to_be_bytes()[..], "-32768", "-32768"),
            (ColumnType::Int4, &i32::MAX.to_be_bytes(), "2147483647", "2147483647"),
            (ColumnType::Int8, &(-1i64).to_be_bytes(), "-1", "-1"),
            (ColumnType::Float4, &0.1f32.to_be_bytes(), "0.1", "0.1"),
            (ColumnType::Float4, &f32::NAN.to_be_bytes(), "NaN", r#""NaN""#),
            (ColumnType::Float8, &1e-7f64.to_be_bytes(), "1e-07", "1e-07"),
            (ColumnType::Float8, &f64::NEG_INFINITY.to_be_bytes(), "-Infinity", r#""-Infinity""#),
            (ColumnType::Numeric, &numeric(0x4000, 3), "-7.500", "-7.500"),
            (ColumnType::Numeric, &nan, "NaN", r#""NaN""#),
            (ColumnType::Bool, &[1], "true", "true"),
            (ColumnType::Text, b"a,\"b\"", r#""a,""b""""#, r#""a,\"b\"""#),
            (
                ColumnType::Uuid,
                &uuid,
                "01234567-89ab-cdef-0123-456789abcdef",
                r#""01234567-89ab-cdef-0123-456789abcdef""#,
            ),
            (ColumnType::Bytea, b"\0\xfe\n", r"\x00fe0a", r#""\\x00fe0a""#),
            (ColumnType::Bytea, b"", r"\x", r#""\\x""#),
            (ColumnType::Json, b"{\"a\" :\r\n\t1e400}", "\"{\"\"a\"\" :\r\n\t1e400}\"", "{\"a\" :  \t1e400}"),
            (ColumnType::Json, b"null", "null", "null"),
            (ColumnType::Jsonb, b"\x01[1, \"\\n\"]", r#""[1, ""\n""]""#, r#"[1, "\n"]"#),
            (ColumnType::Timestamptz, &[0; 8], "2000-01-01T00:00:00.000000Z", r#""2000-01-01T00:00:00.000000Z""#),
            (ColumnType::Timestamp, &[0; 8], "2000-01-01T00:00:00.000000", r#""2000-01-01T00:00:00.000000""#),
            (ColumnType::Timestamp, &i64::MAX.to_be_bytes(), "infinity", r#""infinity""#),
            (ColumnType::Date, &[0; 4], "2000-01-01", r#""2000-01-01""#),
            (ColumnType::Time, &[0; 8], "00:00:00.000000", r#""00:00:00.000000""#),
        ] {
            assert_eq!(text(Format::Csv, kind, field), format!("{csv}\n"), "{kind:?}");
            assert_eq!(text(Format::Ndjson, kind, field), format!("{{\"v\":{json}}}\n"), "{kind:?}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_an_error_in_every_format() {
        let beyond = (datetime::MICROS_PER_DAY + 1).to_be_bytes();
        let others: [(ColumnType, &[u8]); 8] = [
            (ColumnType::Int2, b"\0\0\0\0"),
            (ColumnType::Float8, b"\0\0\0\0"),
            (ColumnType::Numeric, b"\0\x01\0\0\0\0\0\0"),
            (ColumnType::Uuid, b"01234567-89ab-cdef-0123-456789abcdef"),
            (ColumnType::Date, &[0; 8]),
            (ColumnType::Time, &beyond),
            (ColumnType::Jsonb, b"{}"),
            (ColumnType::Jsonb, b""),
        ];
        for (kind, field) in others {
            for format in built() {
                let error = row(format, kind, field).unwrap_err();
                assert!(matches!(error, Error::WrongType { column } if column == "v"), "{kind:?} as {format}");
            }
        }
        for kind in [ColumnType::Text, ColumnType::Json, ColumnType::Jsonb] {
            for format in built() {
                let error = row(format, kind, b"\x01\xff").unwrap_err();
                assert!(matches!(error, Error::InvalidText { column } if column == "v"), "{kind:?} as {format}");
            }
        }
        for format in built() {
            let layout = layout(format, Compression::None, vec![Column::new("v", ColumnType::Text)]).unwrap();
            let error = Encoder::new(&layout).row(&[]).unwrap_err();
            assert!(matches!(error, Error::WrongShape { expected: 1, found: 0 }), "{format}");
        }
    }

    fn built() -> impl Iterator<Item = Format> {
        Format::ALL.iter().copied().filter(|format| format.spec().is_built)
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(kind in prop::sample::select(&KINDS[..]), field: Vec<u8>) {
            for format in built() {
                let _ = row(format, kind, &field);
            }
        }
    }
}
