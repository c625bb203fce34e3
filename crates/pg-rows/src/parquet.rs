//! Apache Parquet: columns in row groups, whose pages are compressed.
//!
//! Every column may be NULL. Its type is the nearest one: `INT(16)`, `INT32`, `INT64`, `FLOAT`, `DOUBLE`, `BOOLEAN`,
//! `STRING`, `UUID`, `JSON`, bytes, `DATE`, and `TIME` and `TIMESTAMP` in microseconds. A `timestamptz` is adjusted to
//! UTC. A `numeric` is a `STRING` of its digits unless the column asks for a `DECIMAL`. A `DECIMAL` has one precision
//! and scale for the whole column, known before the first row, and neither NaN nor infinity. It is stored as `INT32` up
//! to 9 digits, as `INT64` up to 18, and as bytes beyond.
//!
//! Parquet counts microseconds from 1970, so its last time is on 10 January 294247. It has no infinity and no time
//! 24:00:00. By default such a value is an error, because a large number in its place would be read as a time. A column
//! may instead write NULL, or be a text.
//!
//! A column of arrays is a `LIST`, whose elements may be NULL and have one of these types. Only an array of one
//! dimension whose indexes begin at 1 is a list; any other one is an error or NULL.

mod chunk;
mod elements;
mod pages;

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{self, LogicalType, Repetition, ZstdLevel};
use parquet::column::writer::get_column_writer;
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, TrackedWrite};
use parquet::schema::types::{SchemaDescriptor, Type};

use crate::column::{Column, ParquetType};
use crate::encoding::{BadEncoding, Compression, Format};
use crate::parquet::chunk::{Chunk, fixed_bytes, types};
use crate::parquet::pages::{Dictionary, PageCompressor};
use crate::piece::Piece;
use crate::writer::{FileAssembler, FormatWriter, RowEncoder};
use crate::{Error, value};

/// The bytes of values in a row group, about 37,000 users. Memory holds four times as much: the spare capacity of the
/// vectors, and the encoded pages.
const GROUP_BYTES: usize = 4 << 20;
const ZSTD_LEVEL: u8 = 1;
/// The number of row groups without a dictionary after one whose dictionary didn't pay. Each column counts its own.
const GROUPS_WITHOUT: u8 = 7;

impl From<ParquetError> for Error {
    fn from(error: ParquetError) -> Error {
        Error::Library { format: Format::Parquet, source: error.into() }
    }
}

#[derive(Clone)]
pub(crate) struct ParquetWriter {
    columns: Vec<Column>,
    schema: Arc<Type>,
    descriptors: Arc<SchemaDescriptor>,
    properties: Arc<WriterProperties>,
    with_dictionary: Arc<WriterProperties>,
    codec: basic::Compression,
}

impl ParquetWriter {
    /// Prepares files whose pages are compressed so. Only zstd has a level; `None` is [`ZSTD_LEVEL`].
    pub(crate) fn new(
        columns: Vec<Column>,
        compression: Compression,
        level: Option<u8>,
    ) -> Result<ParquetWriter, Error> {
        let codec = codec(compression, level)?;
        let fields = columns.iter().map(|column| Ok(Arc::new(field(column)?))).collect::<Result<_, ParquetError>>()?;
        let schema = Arc::new(Type::group_type_builder("rows").with_fields(fields).build()?);
        let descriptors = Arc::new(SchemaDescriptor::new(Arc::clone(&schema)));
        let mut properties = WriterProperties::builder()
            .set_created_by(concat!("cdc-export version ", env!("CARGO_PKG_VERSION")).to_owned())
            // Statistics of pages would stay in memory until the file ends. Those of groups are enough for groups of
            // this size.
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_offset_index_disabled(true)
            .set_dictionary_enabled(false);
        // Numbers and times that are near the ones before take a few bits each, which also leaves the codec less to do.
        for column in descriptors.columns() {
            if matches!(column.physical_type(), basic::Type::INT32 | basic::Type::INT64) {
                properties =
                    properties.set_column_encoding(column.path().clone(), basic::Encoding::DELTA_BINARY_PACKED);
            }
        }
        // At its limit the library gives a dictionary up, and the pages behind that are plain. No group reaches this
        // limit.
        let with_dictionary = properties.clone().set_dictionary_enabled(true);
        let with_dictionary = with_dictionary.set_dictionary_page_size_limit(GROUP_BYTES).build().into();
        Ok(ParquetWriter {
            columns,
            schema,
            descriptors,
            properties: properties.build().into(),
            with_dictionary,
            codec,
        })
    }
}

impl FormatWriter for ParquetWriter {
    fn encoder(&self) -> Box<dyn RowEncoder> {
        let chunks = self.columns.iter().map(Chunk::of).collect();
        let without = vec![0; self.columns.len()];
        Box::new(GroupEncoder { writer: self.clone(), chunks, without, rows: 0, bytes: 0 })
    }

    fn begin(&self) -> Result<(Box<dyn FileAssembler>, Vec<u8>), Error> {
        let (schema, properties) = (Arc::clone(&self.schema), Arc::clone(&self.properties));
        Ok((Box::new(ParquetAssembler(SerializedFileWriter::new(Vec::new(), schema, properties)?)), Vec::new()))
    }
}

struct GroupEncoder {
    writer: ParquetWriter,
    chunks: Vec<Chunk>,
    /// For each column, the number of next groups in which it has no dictionary.
    without: Vec<u8>,
    rows: u64,
    bytes: usize,
}

impl RowEncoder for GroupEncoder {
    fn append(&mut self, fields: &[Option<&[u8]>]) -> Result<(), Error> {
        value::require_shape(&self.writer.columns, fields)?;
        for ((column, chunk), field) in self.writer.columns.iter().zip(&mut self.chunks).zip(fields) {
            self.bytes += chunk.push(column, *field)?;
        }
        self.rows += 1;
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.bytes >= GROUP_BYTES
    }

    fn is_empty(&self) -> bool {
        self.rows == 0
    }

    fn finish(&mut self) -> Result<Piece, Error> {
        let ParquetWriter { columns, descriptors, .. } = &self.writer;
        let (mut pages, mut closed) = (TrackedWrite::new(Vec::new()), Vec::with_capacity(columns.len()));
        let mut compressor = PageCompressor::new(self.writer.codec)?;
        let chunks = self.chunks.iter_mut().zip(&mut self.without);
        for ((descriptor, column), (chunk, without)) in descriptors.columns().iter().zip(columns).zip(chunks) {
            // Each column's values are freed once encoded. Kept for the next group, they would add to the pages of this
            // one.
            let chunk = std::mem::replace(chunk, Chunk::of(column));
            let to_pages = Box::new(compressor.pages(&mut pages));
            let has_dictionary = *without == 0 && chunk.repeats();
            *without = without.saturating_sub(1);
            let properties = if has_dictionary { &self.writer.with_dictionary } else { &self.writer.properties };
            let texts = chunk.texts();
            let mut writer = get_column_writer(Arc::clone(descriptor), Arc::clone(properties), to_pages);
            chunk.write(&mut writer)?;
            let entry = writer.close()?;
            closed.push(compressor.entry(entry)?);
            if compressor.dictionary().is_some_and(|dictionary| !pays(texts, dictionary)) {
                *without = GROUPS_WITHOUT;
            }
        }
        (self.rows, self.bytes) = (0, 0);
        Ok(Piece { bytes: pages.into_inner()?, text_bytes: 0, columns: closed })
    }
}

/// Returns true if a dictionary saves at least four times the bytes of its indexes. A codec compresses texts, and
/// indexes hardly at all.
fn pays((texts, plain_bytes): (usize, usize), dictionary: Dictionary) -> bool {
    let index_bits = (u32::BITS - dictionary.values.leading_zeros()) as usize;
    let saved_bits = plain_bytes.saturating_sub(dictionary.plain_bytes) * 8;
    saved_bits >= 4 * index_bits * texts
}

/// Puts row groups behind one another, and the footer behind them.
struct ParquetAssembler(SerializedFileWriter<Vec<u8>>);

impl ParquetAssembler {
    /// Returns the bytes written since the last call. The library counts the file's bytes itself.
    fn take(&mut self) -> Result<Vec<u8>, Error> {
        self.0.flush().map_err(ParquetError::from)?;
        Ok(std::mem::take(self.0.inner_mut()))
    }
}

impl FileAssembler for ParquetAssembler {
    fn append(&mut self, Piece { bytes, columns, .. }: Piece) -> Result<Vec<u8>, Error> {
        let (mut group, pages) = (self.0.next_row_group()?, Bytes::from(bytes));
        for closed in columns {
            group.append_column(&pages, closed)?;
        }
        group.close()?;
        self.take()
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<u8>, Error> {
        self.0.finish()?;
        self.take()
    }
}

fn codec(compression: Compression, level: Option<u8>) -> Result<basic::Compression, Error> {
    Ok(match compression {
        Compression::None => basic::Compression::UNCOMPRESSED,
        Compression::Zstd => basic::Compression::ZSTD(ZstdLevel::try_new(level.unwrap_or(ZSTD_LEVEL).into())?),
        Compression::Snappy => basic::Compression::SNAPPY,
        Compression::Lz4 => basic::Compression::LZ4_RAW,
        Compression::Gzip => return Err(BadEncoding::NoCompression { format: Format::Parquet, compression }.into()),
    })
}

fn field(column: &Column) -> Result<Type, ParquetError> {
    if !column.is_list {
        return value_field(&column.name, column);
    }
    let element = value_field("element", column)?;
    let repeated = Type::group_type_builder("list").with_repetition(Repetition::REPEATED);
    Type::group_type_builder(&column.name)
        .with_repetition(Repetition::OPTIONAL)
        .with_logical_type(Some(LogicalType::List))
        .with_fields(vec![Arc::new(repeated.with_fields(vec![Arc::new(element)]).build()?)])
        .build()
}

/// Returns the field of a column's values, or of the elements of its lists.
fn value_field(name: &str, column: &Column) -> Result<Type, ParquetError> {
    let (stored, logical) = types(column);
    let mut builder = Type::primitive_type_builder(name, stored).with_repetition(Repetition::OPTIONAL);
    if stored == basic::Type::FIXED_LEN_BYTE_ARRAY {
        builder = builder.with_length(fixed_bytes(column) as i32);
    }
    if let ParquetType::Decimal { precision, scale } = column.parquet {
        builder = builder.with_precision(precision.into()).with_scale(scale.into());
    }
    builder.with_logical_type(logical).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::column::ColumnType;
    use crate::datetime::MICROS_PER_DAY;
    use crate::parquet::chunk::{EPOCH_DAYS, EPOCH_MICROS};
    use crate::tests;
    use parquet::data_type::Decimal;
    use parquet::file::metadata::RowGroupMetaData;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;
    use parquet::schema::printer::print_schema;

    type Row<'f> = Vec<Option<&'f [u8]>>;

    fn file<'f>(columns: &[Column], rows: impl IntoIterator<Item = Row<'f>>) -> SerializedFileReader<Bytes> {
        let file = tests::file((Format::Parquet, Compression::Zstd), columns, rows).unwrap();
        SerializedFileReader::new(file.into()).unwrap()
    }

    /// Returns the error of a file of one value.
    fn refused(column: &Column, value: &[u8]) -> Error {
        tests::file((Format::Parquet, Compression::None), std::slice::from_ref(column), [vec![Some(value)]])
            .unwrap_err()
    }

    fn read(file: &SerializedFileReader<Bytes>) -> Vec<Vec<Field>> {
        let rows = file.get_row_iter(None).unwrap().map(Result::unwrap);
        rows.map(|row| row.into_columns().into_iter().map(|(_, field)| field).collect()).collect()
    }

    fn decimals(name: &'static str, precision: u8) -> Column {
        let parquet = ParquetType::Decimal { precision, scale: 2 };
        Column { parquet, ..Column::new(name, ColumnType::Numeric) }
    }

    #[test]
    fn every_kind_has_its_type() {
        // 1.5 and -12345678.90: a count of digits, the weight, the sign, the scale, and digits of four places.
        let short = [2, 0, 0, 2, 1, 5000].map(u16::to_be_bytes).concat();
        let long = [3, 1, 0x4000, 2, 1234, 5678, 9000].map(u16::to_be_bytes).concat();
        let (ends_1999, tomorrow) = ((-1i64).to_be_bytes(), 1i32.to_be_bytes());
        let text = |text: &str| Field::Str(text.to_owned());
        let bytes = |bytes: &[u8]| Field::Bytes(bytes.to_vec().into());
        let units = (-1_234_567_890_i128).to_be_bytes()[7..].to_vec();
        let values: [(Column, &[u8], Field); 20] = [
            (Column::new("int2", ColumnType::Int2), &[0xff, 0xfe], Field::Short(-2)),
            (Column::new("int4", ColumnType::Int4), &[0x80, 0, 0, 0], Field::Int(i32::MIN)),
            (Column::new("int8", ColumnType::Int8), &ends_1999, Field::Long(-1)),
            (Column::new("float4", ColumnType::Float4), &1.5f32.to_be_bytes(), Field::Float(1.5)),
            (Column::new("float8", ColumnType::Float8), &(-1e300f64).to_be_bytes(), Field::Double(-1e300)),
            (Column::new("numeric", ColumnType::Numeric), &short, text("1.50")),
            (decimals("digits9", 9), &short, Field::Decimal(Decimal::from_i32(150, 9, 2))),
            (decimals("digits10", 10), &long, Field::Decimal(Decimal::from_i64(-1_234_567_890, 10, 2))),
            (decimals("digits18", 18), &short, Field::Decimal(Decimal::from_i64(150, 18, 2))),
            (decimals("digits19", 19), &long, Field::Decimal(Decimal::from_bytes(units.into(), 19, 2))),
            (Column::new("bool", ColumnType::Bool), &[1], Field::Bool(true)),
            (Column::new("text", ColumnType::Text), b"a", text("a")),
            (Column::new("date", ColumnType::Date), &tomorrow, Field::Date(EPOCH_DAYS + 1)),
            (Column::new("time", ColumnType::Time), &[0, 0, 0, 0, 0, 0, 1, 0], Field::TimeMicros(256)),
            (Column::new("at", ColumnType::Timestamptz), &ends_1999, Field::TimestampMicros(EPOCH_MICROS - 1)),
            (Column::new("local", ColumnType::Timestamp), &ends_1999, Field::TimestampMicros(EPOCH_MICROS - 1)),
            (Column::new("uuid", ColumnType::Uuid), &[7; 16], bytes(&[7; 16])),
            (Column::new("bytea", ColumnType::Bytea), b"\xff\0", bytes(b"\xff\0")),
            (Column::new("json", ColumnType::Json), b"{ }", text("{ }")),
            (Column::new("jsonb", ColumnType::Jsonb), b"\x01[]", text("[]")),
        ];
        let columns: Vec<_> = values.iter().map(|(column, ..)| column.clone()).collect();
        let schema = "message rows {
  OPTIONAL INT32 int2 (INTEGER(16,true));
  OPTIONAL INT32 int4;
  OPTIONAL INT64 int8;
  OPTIONAL FLOAT float4;
  OPTIONAL DOUBLE float8;
  OPTIONAL BYTE_ARRAY numeric (STRING);
  OPTIONAL INT32 digits9 (DECIMAL(9,2));
  OPTIONAL INT64 digits10 (DECIMAL(10,2));
  OPTIONAL INT64 digits18 (DECIMAL(18,2));
  OPTIONAL FIXED_LEN_BYTE_ARRAY (9) digits19 (DECIMAL(19,2));
  OPTIONAL BOOLEAN bool;
  OPTIONAL BYTE_ARRAY text (STRING);
  OPTIONAL INT32 date (DATE);
  OPTIONAL INT64 time (TIME(MICROS,false));
  OPTIONAL INT64 at (TIMESTAMP(MICROS,true));
  OPTIONAL INT64 local (TIMESTAMP(MICROS,false));
  OPTIONAL FIXED_LEN_BYTE_ARRAY (16) uuid (UUID);
  OPTIONAL BYTE_ARRAY bytea;
  OPTIONAL BYTE_ARRAY json (JSON);
  OPTIONAL BYTE_ARRAY jsonb (JSON);
}
";
        for rows in [vec![], vec![values.iter().map(|(_, value, _)| Some(*value)).collect()]] {
            let file = file(&columns, rows.clone());
            let mut printed = Vec::new();
            print_schema(&mut printed, file.metadata().file_metadata().schema());
            assert_eq!(String::from_utf8(printed).unwrap(), schema);
            assert_eq!(file.num_row_groups(), rows.len());
            let fields: Vec<_> = values.iter().map(|(.., field)| field.clone()).collect();
            assert_eq!(read(&file), rows.iter().map(|_| fields.clone()).collect::<Vec<_>>());
        }
        for precision in [9, 10, 18, 19] {
            // One digit more than the column has.
            let more = [u16::from(precision) / 4 + 1, u16::from(precision) / 4, 0, 0].into_iter();
            let more: Vec<_> = more.chain((0..=precision / 4).map(|_| 9999)).flat_map(u16::to_be_bytes).collect();
            assert!(matches!(refused(&decimals("v", precision), &more), Error::WrongType(_)), "{precision}");
        }
    }

    #[test]
    fn a_day_or_time_that_parquet_has_no_form_for_is_an_error() {
        let days = [i32::MIN, i32::MAX, i32::MAX - EPOCH_DAYS + 1].map(i32::to_be_bytes);
        let moments = [i64::MIN, i64::MAX, i64::MAX - EPOCH_MICROS + 1].map(i64::to_be_bytes);
        let last_moment = (i64::MAX - EPOCH_MICROS).to_be_bytes();
        let [last_time, end_of_day] = [MICROS_PER_DAY - 1, MICROS_PER_DAY].map(i64::to_be_bytes);
        let last_day = (i32::MAX - EPOCH_DAYS).to_be_bytes();
        let moments = moments.each_ref().map(|moment| &moment[..]);
        for (kind, beyond, last, field) in [
            (ColumnType::Date, days.each_ref().map(|day| &day[..]), &last_day[..], Field::Date(i32::MAX)),
            (ColumnType::Timestamp, moments, &last_moment, Field::TimestampMicros(i64::MAX)),
            (ColumnType::Timestamptz, moments, &last_moment, Field::TimestampMicros(i64::MAX)),
            (ColumnType::Time, [&end_of_day[..]; 3], &last_time, Field::TimeMicros(MICROS_PER_DAY - 1)),
        ] {
            let column = Column::new("v", kind);
            for value in beyond {
                let error = refused(&column, value);
                assert!(matches!(error, Error::NotInFormat { column, .. } if column == "v"), "{kind:?}: {value:?}");
            }
            assert_eq!(read(&file(&[column], [vec![Some(last)]])), [[field]]);
        }
    }

    /// The binary form of an array.
    fn array(dimensions: &[(i32, i32)], elements: &[Option<&[u8]>]) -> Vec<u8> {
        let bounds = dimensions.iter().flat_map(|(count, first)| [*count, *first]);
        let numbers = [dimensions.len() as i32, 1, 25].into_iter().chain(bounds);
        let mut field: Vec<u8> = numbers.flat_map(i32::to_be_bytes).collect();
        for element in elements {
            field.extend(element.map_or(-1, |element| element.len() as i32).to_be_bytes());
            field.extend_from_slice(element.unwrap_or_default());
        }
        field
    }

    fn list(elements: &[Option<&[u8]>]) -> Vec<u8> {
        array(&[(elements.len() as i32, 1)], elements)
    }

    fn lists(kind: ColumnType) -> Column {
        Column { is_list: true, ..Column::new("v", kind) }
    }

    #[test]
    fn arrays_are_lists_that_are_null_or_empty_or_have_nulls() {
        // More than a batch of texts has, in one row and in many.
        let long: Vec<_> = (0..3_000).map(|n| (n % 5 > 0).then(|| n.to_string())).collect();
        let mut expected = vec![Some(long.clone()), None, Some(vec![]), Some(vec![None]), Some(long)];
        expected.extend((0..2_000).map(|n| (n % 3 > 0).then(|| vec![Some(format!("{n}")), None, Some(String::new())])));
        let array = |texts: &Vec<Option<String>>| {
            let texts: Vec<_> = texts.iter().map(|text| text.as_ref().map(String::as_bytes)).collect();
            if texts.is_empty() { array(&[], &[]) } else { list(&texts) }
        };
        let fields: Vec<_> = expected.iter().map(|texts| texts.as_ref().map(array)).collect();
        let element = |field: &Field| match field {
            Field::Str(text) => Some(text.clone()),
            _ => None,
        };
        let list = |row: Vec<Field>| match &row[0] {
            Field::ListInternal(list) => Some(list.elements().iter().map(element).collect()),
            _ => None,
        };
        let written = file(&[lists(ColumnType::Text)], fields.iter().map(|field| vec![field.as_deref()]));
        assert_eq!(read(&written).into_iter().map(list).collect::<Vec<Option<Vec<_>>>>(), expected);
    }

    #[test]
    fn a_field_that_is_no_array_is_of_the_wrong_type() {
        let (one, whole) = (1_i32.to_be_bytes(), list(&[Some(&1_i32.to_be_bytes()), None]));
        let fields = (0..whole.len()).map(|end| whole[..end].to_vec()).chain([
            [&whole[..], &one].concat(),
            array(&[(-1, 1)], &[]),
            list(&[Some(b"\0")]),
            [&(-1_i32).to_be_bytes()[..], &[0; 8]].concat(),
        ]);
        for field in fields {
            let error = refused(&lists(ColumnType::Int4), &field);
            assert!(matches!(error, Error::WrongType(column) if column == "v"), "{field:?}");
        }
    }

    #[test]
    fn a_group_ends_at_its_bytes_and_none_is_lost() {
        let text = vec![b'x'; GROUP_BYTES / 10];
        // Every third is NULL, and there are more than one batch of texts has.
        let small: Vec<[u8; 8]> = (0..5_000i64).map(i64::to_be_bytes).collect();
        let wide = (0..25).map(|_| vec![None, Some(&text[..])]);
        let narrow = small.iter().enumerate().map(|(i, n)| vec![Some(&n[..]), (i % 3 > 0).then_some(&b"t"[..])]);
        let columns = [Column::new("id", ColumnType::Int8), Column::new("name", ColumnType::Text)];
        let written = file(&columns, wide.chain(narrow));
        assert_eq!(written.num_row_groups(), 3);
        let rows = read(&written);
        assert_eq!(rows.len(), 5_025);
        for (i, row) in rows[25..].iter().enumerate() {
            let text = if i % 3 > 0 { Field::Str("t".to_owned()) } else { Field::Null };
            assert_eq!(row[..], [Field::Long(i as i64), text]);
        }
        // Each list counts with its elements.
        let row = list(&[Some(&small[0][..]); 1_000]);
        let written = file(&[lists(ColumnType::Int8)], (0..GROUP_BYTES / 12_000 + 2).map(|_| vec![Some(&*row)]));
        assert_eq!(written.num_row_groups(), 2);
    }

    /// For each row group, whether the texts of the only column are in a dictionary: all or none.
    fn dictionaries(texts: impl IntoIterator<Item = String>) -> Vec<bool> {
        let texts: Vec<String> = texts.into_iter().collect();
        let rows = texts.iter().map(|text| vec![Some(text.as_bytes())]);
        let has_dictionary = |group: &RowGroupMetaData| {
            let encodings = group.column(0).page_encoding_stats_mask().unwrap();
            let has_dictionary = encodings.is_only(basic::Encoding::RLE_DICTIONARY);
            assert!(has_dictionary || encodings.is_only(basic::Encoding::PLAIN), "{encodings:?}");
            has_dictionary
        };
        file(&[Column::new("v", ColumnType::Text)], rows).metadata().row_groups().iter().map(has_dictionary).collect()
    }

    #[test]
    fn a_group_has_a_dictionary_while_that_pays() {
        // 1.5 MB of distinct texts.
        let random = |state: &u64| {
            let state = state ^ state << 13;
            let state = state ^ state >> 7;
            Some(state ^ state << 17)
        };
        let numbers = std::iter::successors(Some(1_u64), random).take(20_000);
        assert_eq!(dictionaries(numbers.map(|number| format!("{:300}", number % 5_000))), [true, true]);
        assert_eq!(dictionaries((0..2_000).map(|n| format!("state {}", n % 7))), [true]);
        assert_eq!(dictionaries((0..2_000).map(|n| format!("{n}@example.com"))), [false]);
        // One frequent text among others.
        let texts = |share| (0..1_000).map(move |n| if n % 100 < share { "?".to_owned() } else { n.to_string() });
        assert_eq!(dictionaries(texts(30)), [false]);
        assert_eq!(dictionaries(texts(90)), [true]);
        // A dictionary that didn't pay: the next groups have none.
        let text = |n: usize| if n % 50 < 5 { format!("state {}", n % 50) } else { format!("{n:100}") };
        let found = dictionaries((0..).map(text).take(10 * GROUP_BYTES / 100));
        assert_eq!(found[..9], [true, false, false, false, false, false, false, false, true]);
    }
}
