//! Encodes rows in Postgres's binary form as CSV, JSON lines or Parquet.
//!
//! Several [`Encoder`]s of one [`Layout`] make [`Piece`]s of one file, each on a thread of its own; an [`Assembler`] joins the pieces in any
//! order. Everything is synchronous and does no I/O. The crate knows nothing of queries, jobs or files.

mod assembler;
pub mod column;
mod compress;
mod csv;
mod datetime;
mod digits;
pub mod encoding;
mod float;
mod ndjson;
mod numeric;
#[cfg(feature = "parquet")]
mod parquet;
mod piece;
pub mod row;
mod value;
pub mod words;

use crate::column::Column;
use crate::compress::Compressor;
use crate::encoding::{Compression, Encoding, Format};

pub use assembler::Assembler;
pub use piece::{Encoder, Piece};

/// How a file is written: what its columns are, in which format, compressed how.
pub struct Layout {
    encoding: Encoding,
    /// What the codec shall do; `None`: at its own level.
    level: Option<u8>,
    columns: Vec<Column>,
    #[cfg(feature = "parquet")]
    parquet: Option<parquet::Layout>,
}

impl Layout {
    /// A file of just these columns, in this order, compressed at this level, 1 to 19; `None`: at the codec's own. What a format
    /// compresses by itself it does at this level too.
    ///
    /// # Errors
    /// If this build doesn't have the format.
    pub fn new(encoding: Encoding, columns: Vec<Column>, level: Option<u8>) -> Result<Layout, Error> {
        if !encoding.format.is_built() {
            return Err(Error::NotBuilt(encoding.format));
        }
        #[cfg(feature = "parquet")]
        let parquet = match encoding.format {
            Format::Parquet => Some(parquet::Layout::new(&columns, level)?),
            Format::Csv | Format::Ndjson => None,
        };
        Ok(Layout {
            encoding,
            level,
            columns,
            #[cfg(feature = "parquet")]
            parquet,
        })
    }

    /// Whether to pack a piece takes so long, in milliseconds, that it keeps others from the thread.
    pub fn packs_long(&self) -> bool {
        self.encoding.compression != Compression::None || self.encoding.format == Format::Parquet
    }

    fn compressor(&self) -> Result<Compressor, Error> {
        Compressor::new(self.encoding.compression, self.level)
    }
}

/// Why a row can't be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text that isn't UTF-8, as a database in `SQL_ASCII` may hold.
    #[error("column `{column}` holds a text that is not UTF-8")]
    InvalidText {
        /// The column's name.
        column: String,
    },
    /// A field of another size than its type has: the table changed under the export, or the service has a defect.
    #[error("column `{column}` is not of the expected type")]
    WrongType {
        /// The column's name.
        column: String,
    },
    /// A row of another number of fields than there are columns.
    #[error("a row of {found} fields where {expected} were expected")]
    WrongShape {
        /// Columns of the file.
        expected: usize,
        /// Fields of the row.
        found: usize,
    },
    /// A value that the format has no form for.
    #[error(
        "column `{column}` holds {value}, for which the format has no form: csv and ndjson have one for every value"
    )]
    NotInFormat {
        /// The column's name.
        column: String,
        /// The value's text, as Postgres writes it.
        value: String,
    },
    /// This build was made without it.
    #[error("this build has no {0}: build it with `cargo build --release --features full`")]
    NotBuilt(Format),
    /// Parquet's writer failed: a defect.
    #[cfg(feature = "parquet")]
    #[error("the parquet writer failed")]
    Parquet(#[from] ::parquet::errors::ParquetError),
    /// The compressor gave up, as for want of memory.
    #[error("the file could not be compressed")]
    Compressor(#[source] std::io::Error),
    /// A frame that ends inside a row.
    #[error(transparent)]
    CutShort(#[from] row::CutShort),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::column::ColumnType;
    use crate::piece::Content;
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

    /// The text that a writer appends for a value.
    pub(crate) fn written<T>(writer: fn(T, &mut Vec<u8>), value: T) -> String {
        let mut out = Vec::new();
        writer(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// What is made of a row of one value.
    fn row(format: Format, kind: ColumnType, field: &[u8]) -> Result<Vec<u8>, Error> {
        let layout = layout(format, Compression::None, vec![Column::new("v", kind)])?;
        let mut encoder = Encoder::new(&layout);
        encoder.row(&[Some(field)])?;
        match encoder.pack()?.0 {
            Content::Bytes(bytes) => Ok(bytes),
            #[cfg(feature = "parquet")]
            Content::RowGroup(_) => Ok(Vec::new()),
        }
    }

    /// A file of these pieces.
    fn file(layout: &Arc<Layout>, pieces: impl IntoIterator<Item = Piece>) -> Vec<u8> {
        let (mut assembler, mut file) = Assembler::begin(layout).unwrap();
        for piece in pieces {
            file.append(&mut assembler.append(piece).unwrap());
        }
        file.append(&mut assembler.finish().unwrap());
        file
    }

    #[test]
    fn pieces_of_several_encoders_are_one_file() {
        let columns = vec![Column::new("id", ColumnType::Int2), Column::new("name", ColumnType::Text)];
        for compression in Compression::ALL {
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
        Format::ALL.iter().copied().filter(|format| cfg!(feature = "parquet") || *format != Format::Parquet)
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
