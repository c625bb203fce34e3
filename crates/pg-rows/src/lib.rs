#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

pub mod column;
mod compress;
mod csv;
mod datetime;
mod digits;
mod encoder;
pub mod encoding;
pub mod export_type;
mod float;
mod mask;
pub mod meta;
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
    #[error("column `{0}` holds a text that is not UTF-8")]
    InvalidText(String),
    /// A field's size is not that of its type: the table changed under the export, or the caller has a defect.
    #[error("column `{0}` is not of the expected type")]
    WrongType(String),
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

    use crate::column::ColumnType;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Returns the text that a function appends for a value.
    pub(crate) fn written<T>(writer: fn(T, &mut Vec<u8>), value: T) -> String {
        let mut out = Vec::new();
        writer(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// Returns the file of these rows.
    pub(crate) fn file<'f>(
        (format, compression): (Format, Compression),
        columns: &[Column],
        rows: impl IntoIterator<Item = Vec<Option<&'f [u8]>>>,
    ) -> Result<Vec<u8>, Error> {
        let layout = Layout::new(Encoding { format, compression }, columns.to_vec(), None)?;
        let mut encoder = Encoder::new(&layout);
        let (mut assembler, mut file) = layout.begin()?;
        for row in rows {
            encoder.row(&row)?;
            if encoder.is_full() {
                file.append(&mut assembler.append(encoder.pack()?)?);
            }
        }
        if !encoder.is_empty() {
            file.append(&mut assembler.append(encoder.pack()?)?);
        }
        file.append(&mut assembler.finish()?);
        Ok(file)
    }

    /// Returns the file of one value, without compression.
    fn file_of_one(format: Format, kind: ColumnType, field: &[u8]) -> Result<String, Error> {
        let written = file((format, Compression::None), &[Column::new("v", kind)], [vec![Some(field)]]);
        written.map(|file| String::from_utf8_lossy(&file).into_owned())
    }

    #[test]
    fn pieces_of_several_encoders_are_one_file() {
        let columns = vec![Column::new("id", ColumnType::Int2), Column::new("name", ColumnType::Text)];
        for compression in Format::Csv.spec().compressions {
            let encoding = Encoding { format: Format::Csv, compression: *compression };
            let layout = Layout::new(encoding, columns.clone(), None).unwrap();
            let (mut assembler, mut file) = layout.begin().unwrap();
            for ids in [2..4_i16, 0..2] {
                let mut encoder = Encoder::new(&layout);
                ids.for_each(|id| encoder.row(&[Some(&id.to_be_bytes()), Some(b"x")]).unwrap());
                file.append(&mut assembler.append(encoder.pack().unwrap()).unwrap());
            }
            file.append(&mut assembler.finish().unwrap());
            let unpacked = compress::unpacked(*compression, &file);
            assert_eq!(String::from_utf8(unpacked).unwrap(), "id,name\n2,x\n3,x\n0,x\n1,x\n", "{compression}");
        }
    }

    /// Returns values of every kind, each with its text in CSV and in NDJSON.
    fn golden() -> Vec<(ColumnType, Vec<u8>, &'static str, &'static str)> {
        let numbers = |numbers: &[u16]| numbers.iter().copied().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
        let controls = "a \"b\"\\\r\n\t\u{8}\u{c}\u{1}\u{1f}\u{7f}é/";
        let uuid = b"\x01\x23\x45\x67\x89\xAB\xCD\xEF\x01\x23\x45\x67\x89\xAB\xCD\xEF";
        vec![
            (ColumnType::Int2, i16::MIN.to_be_bytes().into(), "-32768", "-32768"),
            (ColumnType::Int4, i32::MAX.to_be_bytes().into(), "2147483647", "2147483647"),
            (ColumnType::Int8, i64::MIN.to_be_bytes().into(), "-9223372036854775808", "-9223372036854775808"),
            (ColumnType::Float4, 0.1f32.to_be_bytes().into(), "0.1", "0.1"),
            (ColumnType::Float4, f32::NAN.to_be_bytes().into(), "NaN", r#""NaN""#),
            (ColumnType::Float8, 1e-7f64.to_be_bytes().into(), "1e-07", "1e-07"),
            (ColumnType::Float8, f64::NEG_INFINITY.to_be_bytes().into(), "-Infinity", r#""-Infinity""#),
            (ColumnType::Numeric, numbers(&[2, 0, 0x4000, 3, 7, 5000]), "-7.500", "-7.500"),
            (ColumnType::Numeric, numbers(&[0, 0, 0xC000, 0]), "NaN", r#""NaN""#),
            (ColumnType::Bool, [1].into(), "true", "true"),
            (ColumnType::Bool, [0].into(), "false", "false"),
            (ColumnType::Text, b"a,\"b\"".into(), r#""a,""b""""#, r#""a,\"b\"""#),
            (
                ColumnType::Text,
                controls.into(),
                "\"a \"\"b\"\"\\\r\n\t\u{8}\u{c}\u{1}\u{1f}\u{7f}é/\"",
                "\"a \\\"b\\\"\\\\\\r\\n\\t\\b\\f\\u0001\\u001f\u{7f}é/\"",
            ),
            (ColumnType::Text, "=1+1 \\N \u{feff}é".into(), "=1+1 \\N \u{feff}é", "\"=1+1 \\\\N \u{feff}é\""),
            (ColumnType::Text, b"\\.".into(), r#""\.""#, r#""\\.""#),
            (ColumnType::Text, b"".into(), r#""""#, r#""""#),
            (
                ColumnType::Uuid,
                uuid.into(),
                "01234567-89ab-cdef-0123-456789abcdef",
                r#""01234567-89ab-cdef-0123-456789abcdef""#,
            ),
            (ColumnType::Bytea, b"\0\xfe\n".into(), r"\x00fe0a", r#""\\x00fe0a""#),
            (ColumnType::Bytea, b"".into(), r"\x", r#""\\x""#),
            (ColumnType::Json, b"{\"a\" :\r\n\t1e400}".into(), "\"{\"\"a\"\" :\r\n\t1e400}\"", "{\"a\" :  \t1e400}"),
            (ColumnType::Json, b"null".into(), "null", "null"),
            (ColumnType::Jsonb, b"\x01[1, \"\\n\"]".into(), r#""[1, ""\n""]""#, r#"[1, "\n"]"#),
            (ColumnType::Timestamptz, [0; 8].into(), "2000-01-01T00:00:00.000000Z", r#""2000-01-01T00:00:00.000000Z""#),
            (ColumnType::Timestamptz, i64::MIN.to_be_bytes().into(), "-infinity", r#""-infinity""#),
            (ColumnType::Timestamp, [0; 8].into(), "2000-01-01T00:00:00.000000", r#""2000-01-01T00:00:00.000000""#),
            (ColumnType::Timestamp, i64::MAX.to_be_bytes().into(), "infinity", r#""infinity""#),
            (ColumnType::Date, [0; 4].into(), "2000-01-01", r#""2000-01-01""#),
            (ColumnType::Time, [0; 8].into(), "00:00:00.000000", r#""00:00:00.000000""#),
        ]
    }

    #[test]
    fn golden_bytes_of_every_kind() {
        for (kind, field, csv, json) in golden() {
            assert_eq!(file_of_one(Format::Csv, kind, &field).unwrap(), format!("v\n{csv}\n"), "{kind:?}");
            assert_eq!(file_of_one(Format::Ndjson, kind, &field).unwrap(), format!("{{\"v\":{json}}}\n"), "{kind:?}");
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
        for format in built() {
            for (kind, field) in others {
                let error = file_of_one(format, kind, field).unwrap_err();
                assert!(matches!(error, Error::WrongType(column) if column == "v"), "{kind:?} as {format}");
            }
            for kind in [ColumnType::Text, ColumnType::Json, ColumnType::Jsonb] {
                let error = file_of_one(format, kind, b"\x01\xff").unwrap_err();
                assert!(matches!(error, Error::InvalidText(column) if column == "v"), "{kind:?} as {format}");
            }
            let column = Column::new("v", ColumnType::Text);
            let error = file((format, Compression::None), &[column], [vec![]]).unwrap_err();
            assert!(matches!(error, Error::WrongShape { expected: 1, found: 0 }), "{format}");
        }
    }

    fn built() -> impl Iterator<Item = Format> {
        Format::ALL.iter().copied().filter(|format| format.spec().is_built)
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic((kind, ..) in prop::sample::select(golden()), field: Vec<u8>) {
            for format in built() {
                let _ = file_of_one(format, kind, &field);
            }
        }

        #[test]
        fn independent_readers_read_the_same(rows in prop::collection::vec([any::<String>(), any::<String>()], 0..8)) {
            let names = ["a", "b,\n\"c\""];
            let columns = names.map(|name| Column::new(name, ColumnType::Text));
            let columns = [&columns[..], &[Column::new("null", ColumnType::Int2)]].concat();
            let fields = || rows.iter().map(|[a, b]| vec![Some(a.as_bytes()), Some(b.as_bytes()), None]);

            let csv = file((Format::Csv, Compression::None), &columns, fields()).unwrap();
            let mut reader = ::csv::Reader::from_reader(&*csv);
            prop_assert_eq!(reader.headers().unwrap(), vec![names[0], names[1], "null"]);
            let read: Vec<(String, String, String)> = reader.deserialize().map(Result::unwrap).collect();
            let expected: Vec<_> = rows.iter().map(|[a, b]| (a.clone(), b.clone(), String::new())).collect();
            prop_assert_eq!(read, expected);

            let lines = file((Format::Ndjson, Compression::None), &columns, fields()).unwrap();
            let read = lines.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap());
            let expected = |[a, b]: &[String; 2]| json!({ names[0]: a, names[1]: b, "null": null });
            prop_assert_eq!(read.collect::<Vec<Value>>(), rows.iter().map(expected).collect::<Vec<_>>());
        }
    }
}
