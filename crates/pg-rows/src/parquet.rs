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
use parquet::basic::{self, LogicalType, Repetition, TimeUnit, ZstdLevel};
use parquet::column::writer::get_column_writer;
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, TrackedWrite};
use parquet::schema::types::{SchemaDescriptor, Type};

use crate::column::{Column, ColumnType, ParquetType};
use crate::encoding::{BadEncoding, Compression, Format};
use crate::parquet::chunk::{Chunk, fixed_bytes, physical_type};
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

/// Writes Parquet files of the same columns.
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

/// Collects rows, and encodes them as row groups.
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
    let physical = physical_type(column);
    let builder = Type::primitive_type_builder(name, physical).with_repetition(Repetition::OPTIONAL);
    let builder = match physical {
        basic::Type::FIXED_LEN_BYTE_ARRAY => builder.with_length(fixed_bytes(column) as i32),
        _ => builder,
    };
    let logical = match (column.kind, column.parquet) {
        (_, ParquetType::Text) => Some(LogicalType::String),
        (_, ParquetType::Decimal { precision, scale }) => {
            let (precision, scale) = (precision.into(), scale.into());
            let logical = LogicalType::decimal(scale, precision);
            return builder.with_precision(precision).with_scale(scale).with_logical_type(Some(logical)).build();
        }
        (ColumnType::Int2, _) => Some(LogicalType::integer(16, true)),
        (ColumnType::Timestamptz, _) => Some(LogicalType::timestamp(true, TimeUnit::MICROS)),
        (ColumnType::Timestamp, _) => Some(LogicalType::timestamp(false, TimeUnit::MICROS)),
        (ColumnType::Date, _) => Some(LogicalType::Date),
        (ColumnType::Time, _) => Some(LogicalType::time(false, TimeUnit::MICROS)),
        (ColumnType::Text | ColumnType::Numeric, _) => Some(LogicalType::String),
        (ColumnType::Uuid, _) => Some(LogicalType::Uuid),
        (ColumnType::Json | ColumnType::Jsonb, _) => Some(LogicalType::Json),
        (ColumnType::Int4 | ColumnType::Int8 | ColumnType::Float4 | ColumnType::Float8, _) => None,
        (ColumnType::Bool | ColumnType::Bytea, _) => None,
    };
    builder.with_logical_type(logical).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datetime;
    use crate::parquet::chunk::{EPOCH_DAYS, EPOCH_MICROS};
    use parquet::file::metadata::RowGroupMetaData;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    const COLUMNS: [Column; 4] = [
        Column::new("id", ColumnType::Int8),
        Column::new("name", ColumnType::Text),
        Column::new("at", ColumnType::Timestamptz),
        Column::new("deleted", ColumnType::Bool),
    ];

    type Row<'r> = [Option<&'r [u8]>; 4];

    /// The file of these rows.
    fn file<'r>(columns: &[Column], rows: impl IntoIterator<Item = Vec<Option<&'r [u8]>>>) -> Result<Bytes, Error> {
        compressed(Compression::Zstd, columns, rows)
    }

    fn compressed<'r>(
        compression: Compression,
        columns: &[Column],
        rows: impl IntoIterator<Item = Vec<Option<&'r [u8]>>>,
    ) -> Result<Bytes, Error> {
        let writer = ParquetWriter::new(columns.to_vec(), compression, None)?;
        let mut encoder = writer.encoder();
        let (mut assembler, mut out) = writer.begin()?;
        for row in rows {
            encoder.append(&row)?;
            if encoder.is_full() {
                out.append(&mut assembler.append(encoder.finish()?)?);
            }
        }
        if !encoder.is_empty() {
            out.append(&mut assembler.append(encoder.finish()?)?);
        }
        out.append(&mut assembler.finish()?);
        Ok(out.into())
    }

    fn encoded<'r>(rows: impl IntoIterator<Item = Row<'r>>) -> Result<SerializedFileReader<Bytes>, Error> {
        Ok(SerializedFileReader::new(file(&COLUMNS, rows.into_iter().map(Vec::from))?).unwrap())
    }

    fn read(file: &SerializedFileReader<Bytes>) -> Vec<Vec<Field>> {
        let rows = file.get_row_iter(None).unwrap().map(Result::unwrap);
        rows.map(|row| row.into_columns().into_iter().map(|(_, field)| field).collect()).collect()
    }

    #[test]
    fn no_rows_are_a_file_with_the_schema() {
        let file = encoded([]).unwrap();
        assert_eq!((file.num_row_groups(), file.metadata().file_metadata().num_rows()), (0, 0));
        let columns = file.metadata().file_metadata().schema_descr().columns();
        assert_eq!(columns.iter().map(|column| column.name()).collect::<Vec<_>>(), ["id", "name", "at", "deleted"]);
        assert_eq!(columns[2].logical_type_ref(), Some(&LogicalType::timestamp(true, TimeUnit::MICROS)));
        assert_eq!(columns[1].logical_type_ref(), Some(&LogicalType::String));
    }

    /// The file of one column with these values.
    fn encoded_one(kind: ColumnType, values: &[&[u8]]) -> Result<SerializedFileReader<Bytes>, Error> {
        let rows = values.iter().map(|value| vec![Some(*value)]);
        Ok(SerializedFileReader::new(file(&[Column::new("v", kind)], rows)?).unwrap())
    }

    #[test]
    fn every_kind_has_its_type() {
        const BYTES_OF_ELEVEN: &[u8] = b"\0\x02\0\0\0\0\0\x01\0\x0b\x13\x88";
        let timestamp = LogicalType::timestamp(false, TimeUnit::MICROS);
        let time = LogicalType::time(false, TimeUnit::MICROS);
        let (ends_1999, a_day_later) = ((-1i64).to_be_bytes(), 1i32.to_be_bytes());
        let bytes = |bytes: &[u8]| Field::Bytes(bytes.to_vec().into());
        for (kind, value, physical, logical, field) in [
            (
                ColumnType::Int2,
                &[0xff, 0xfe][..],
                basic::Type::INT32,
                Some(LogicalType::integer(16, true)),
                Field::Short(-2),
            ),
            (ColumnType::Int4, &[0x80, 0, 0, 0], basic::Type::INT32, None, Field::Int(i32::MIN)),
            (ColumnType::Float4, &1.5f32.to_be_bytes(), basic::Type::FLOAT, None, Field::Float(1.5)),
            (ColumnType::Float8, &(-1e300f64).to_be_bytes(), basic::Type::DOUBLE, None, Field::Double(-1e300)),
            (
                ColumnType::Numeric,
                BYTES_OF_ELEVEN,
                basic::Type::BYTE_ARRAY,
                Some(LogicalType::String),
                Field::Str("11.5".into()),
            ),
            (ColumnType::Date, &a_day_later, basic::Type::INT32, Some(LogicalType::Date), Field::Date(EPOCH_DAYS + 1)),
            (ColumnType::Time, &[0, 0, 0, 0, 0, 0, 1, 0], basic::Type::INT64, Some(time), Field::TimeMicros(256)),
            (
                ColumnType::Timestamp,
                &ends_1999,
                basic::Type::INT64,
                Some(timestamp),
                Field::TimestampMicros(EPOCH_MICROS - 1),
            ),
            (ColumnType::Uuid, &[7; 16], basic::Type::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Uuid), bytes(&[7; 16])),
            (ColumnType::Bytea, b"\xff\0", basic::Type::BYTE_ARRAY, None, bytes(b"\xff\0")),
            (ColumnType::Json, b"{ }", basic::Type::BYTE_ARRAY, Some(LogicalType::Json), Field::Str("{ }".into())),
            (ColumnType::Jsonb, b"\x01[]", basic::Type::BYTE_ARRAY, Some(LogicalType::Json), Field::Str("[]".into())),
        ] {
            let file = encoded_one(kind, &[value]).unwrap();
            let column = file.metadata().file_metadata().schema_descr().column(0);
            assert_eq!((column.physical_type(), column.logical_type_ref()), (physical, logical.as_ref()), "{kind:?}");
            assert_eq!(read(&file), [[field]], "{kind:?}");
        }
    }

    #[test]
    fn a_decimal_is_the_smallest_integer_that_has_its_digits() {
        // 1.5 with a scale of 2, and 12345678.90: a count, the weight, the sign, the scale, and digits of four places.
        let short = [2, 0, 0, 2, 1, 5000].map(u16::to_be_bytes).concat();
        let long = [3, 1, 0x4000, 2, 1234, 5678, 9000].map(u16::to_be_bytes).concat();
        for (precision, value, physical, length, units) in [
            (9, &short, basic::Type::INT32, -1, 150),
            (10, &long, basic::Type::INT64, -1, -1_234_567_890_i128),
            (18, &short, basic::Type::INT64, -1, 150),
            (19, &long, basic::Type::FIXED_LEN_BYTE_ARRAY, 9, -1_234_567_890),
        ] {
            let parquet = ParquetType::Decimal { precision, scale: 2 };
            let column = Column { parquet, ..Column::new("v", ColumnType::Numeric) };
            let written = file(std::slice::from_ref(&column), [vec![Some(&**value)]]).unwrap();
            let read_back = SerializedFileReader::new(written).unwrap();
            let found = read_back.metadata().file_metadata().schema_descr().column(0);
            assert_eq!((found.physical_type(), found.type_length()), (physical, length), "{precision}");
            assert_eq!(found.logical_type_ref(), Some(&LogicalType::decimal(2, precision.into())), "{precision}");
            let rows = read(&read_back);
            let Field::Decimal(decimal) = &rows[0][0] else { panic!("{rows:?}") };
            let bytes = decimal.data();
            let sign = bytes[0] as i8 >> 7;
            let found = bytes.iter().fold(i128::from(sign), |units, byte| units << 8 | i128::from(*byte));
            assert_eq!(found, units, "{precision}");
            // One digit more than the column has.
            let more = [u16::from(precision) / 4 + 1, u16::from(precision) / 4, 0, 0].into_iter();
            let more: Vec<_> = more.chain((0..=precision / 4).map(|_| 9999)).flat_map(u16::to_be_bytes).collect();
            let error = file(&[column], [vec![Some(&*more)]]).unwrap_err();
            assert!(matches!(error, Error::WrongType { .. }), "{precision}: {error}");
        }
    }

    #[test]
    fn a_day_or_time_that_parquet_has_no_form_for_is_an_error() {
        let error = |kind, value: &[u8]| encoded_one(kind, &[value]).err();
        let refused =
            |kind, value: &[u8]| matches!(error(kind, value), Some(Error::NotInFormat { column, .. }) if column == "v");
        for day in [i32::MIN, i32::MAX, i32::MAX - EPOCH_DAYS + 1] {
            assert!(refused(ColumnType::Date, &day.to_be_bytes()), "{day}");
        }
        let last = i32::MAX - EPOCH_DAYS;
        assert_eq!(read(&encoded_one(ColumnType::Date, &[&last.to_be_bytes()]).unwrap()), [[Field::Date(i32::MAX)]]);
        for micros in [i64::MIN, i64::MAX, i64::MAX - EPOCH_MICROS + 1] {
            assert!(refused(ColumnType::Timestamp, &micros.to_be_bytes()), "{micros}");
            assert!(refused(ColumnType::Timestamptz, &micros.to_be_bytes()), "{micros}");
        }
        let (last, of_parquet) = (i64::MAX - EPOCH_MICROS, Field::TimestampMicros(i64::MAX));
        assert_eq!(read(&encoded_one(ColumnType::Timestamptz, &[&last.to_be_bytes()]).unwrap()), [[of_parquet]]);
        assert!(refused(ColumnType::Time, &datetime::MICROS_PER_DAY.to_be_bytes()));
        let last = datetime::MICROS_PER_DAY - 1;
        assert_eq!(read(&encoded_one(ColumnType::Time, &[&last.to_be_bytes()]).unwrap()), [[Field::TimeMicros(last)]]);
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

    /// The lists of a file of one column, of elements that are texts.
    fn read_lists(file: Bytes) -> Vec<Option<Vec<Option<String>>>> {
        let element = |field: &Field| match field {
            Field::Null => None,
            Field::Str(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        let list = |row: &Vec<Field>| match &row[0] {
            Field::Null => None,
            Field::ListInternal(list) => Some(list.elements().iter().map(element).collect()),
            other => panic!("{other} is no list"),
        };
        read(&SerializedFileReader::new(file).unwrap()).iter().map(list).collect()
    }

    #[test]
    fn arrays_are_lists_that_are_null_or_empty_or_have_nulls() {
        let long: Vec<String> = (0..3_000).map(|n| n.to_string()).collect();
        let long: Vec<Option<String>> = long.into_iter().enumerate().map(|(i, it)| (i % 5 > 0).then_some(it)).collect();
        // More than a batch of texts has, in one row and in many.
        let mut expected = vec![Some(long.clone()), None, Some(vec![]), Some(vec![None]), Some(long)];
        expected.extend((0..2_000).map(|n| (n % 3 > 0).then(|| vec![Some(format!("{n}")), None, Some(String::new())])));
        let fields: Vec<_> = expected
            .iter()
            .map(|texts| {
                let texts = texts.as_ref()?;
                let texts: Vec<_> = texts.iter().map(|text| text.as_ref().map(String::as_bytes)).collect();
                Some(if texts.is_empty() { array(&[], &[]) } else { list(&texts) })
            })
            .collect();
        let rows = || fields.iter().map(|field| vec![field.as_deref()]);
        let written = file(&[lists(ColumnType::Text)], rows()).unwrap();
        assert_eq!(read_lists(written), expected);

        let (one, two) = (1_i32.to_be_bytes(), (-2_i32).to_be_bytes());
        let rows = [list(&[Some(&one), None]), list(&[Some(&two)]), array(&[], &[])];
        let written = file(&[lists(ColumnType::Int4)], rows.iter().map(|row| vec![Some(&**row)])).unwrap();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(read_lists(written), [Some(vec![text("1"), None]), Some(vec![text("-2")]), Some(vec![])]);
    }

    #[test]
    fn a_list_counts_for_the_size_of_its_group() {
        let number = [0; 8];
        let row = list(&[Some(&number[..]); 1_000]);
        let rows = GROUP_BYTES / 12_000 + 1;
        let file = file(&[lists(ColumnType::Int8)], (0..rows + 1).map(|_| vec![Some(&*row)])).unwrap();
        assert_eq!(SerializedFileReader::new(file).unwrap().num_row_groups(), 2);
    }

    #[test]
    fn an_array_that_is_no_list_is_an_error_or_null() {
        let one = 1_i32.to_be_bytes();
        for (field, value) in [
            (array(&[(1, 1), (1, 1)], &[Some(&one)]), "an array of 2 dimensions"),
            (array(&[(1, 0)], &[Some(&one)]), "an array whose first index is 0"),
        ] {
            let column = lists(ColumnType::Int4);
            let error = file(std::slice::from_ref(&column), [vec![Some(&*field)]]).unwrap_err();
            assert!(matches!(error, Error::NotInFormat { value: found, .. } if found == value), "{value}");
            let column = Column { null_if_unrepresentable: true, ..column };
            assert_eq!(read_lists(file(&[column], [vec![Some(&*field)]]).unwrap()), [None]);
        }
        let field = list(&[Some(&i32::MAX.to_be_bytes()), Some(&one)]);
        let column = Column { null_if_unrepresentable: true, ..lists(ColumnType::Date) };
        let written = file(&[column], [vec![Some(&*field)]]).unwrap();
        assert_eq!(read_lists(written), [Some(vec![None, Some("2000-01-02".to_owned())])]);
    }

    #[test]
    fn what_is_no_array_is_of_the_wrong_type() {
        let (one, whole) = (1_i32.to_be_bytes(), list(&[Some(&1_i32.to_be_bytes()), None]));
        let refused = |field: &[u8]| {
            let error = file(&[lists(ColumnType::Int4)], [vec![Some(field)]]).unwrap_err();
            assert!(matches!(error, Error::WrongType { column } if column == "v"), "{field:?}");
        };
        (0..whole.len()).for_each(|end| refused(&whole[..end]));
        refused(&[&whole[..], &one].concat());
        refused(&array(&[(-1, 1)], &[]));
        refused(&list(&[Some(b"\0")]));
        refused(&[&(-1_i32).to_be_bytes()[..], &[0; 8]].concat());
    }

    #[test]
    fn a_group_ends_at_its_bytes_and_none_is_lost() {
        let text = vec![b'x'; GROUP_BYTES / 10];
        // Every third is NULL, and there are more than one batch of texts has.
        let small: Vec<[u8; 8]> = (0..5_000i64).map(i64::to_be_bytes).collect();
        let wide = (0..25).map(|_| [None, Some(&text[..]), None, None]);
        let narrow = small.iter().enumerate().map(|(i, n)| [Some(&n[..]), (i % 3 > 0).then_some(&n[4..]), None, None]);
        let narrow = narrow.map(|[id, text, at, gone]| [id, text.map(|_| &b"t"[..]), at, gone]);
        let file = encoded(wide.chain(narrow)).unwrap();
        assert_eq!(file.num_row_groups(), 3);
        let rows = read(&file);
        assert_eq!(rows.len(), 5_025);
        for (i, row) in rows[25..].iter().enumerate() {
            let text = if i % 3 > 0 { Field::Str("t".to_owned()) } else { Field::Null };
            assert_eq!(row[..2], [Field::Long(i as i64), text]);
        }
    }

    /// For each row group, whether the texts of the only column are in a dictionary: all or none.
    fn dictionaries(texts: impl IntoIterator<Item = String>) -> Vec<bool> {
        let texts: Vec<String> = texts.into_iter().collect();
        let rows = texts.iter().map(|text| vec![Some(text.as_bytes())]);
        let file = SerializedFileReader::new(file(&[Column::new("v", ColumnType::Text)], rows).unwrap()).unwrap();
        let has_dictionary = |group: &RowGroupMetaData| {
            let encodings = group.column(0).page_encoding_stats_mask().unwrap();
            let has_dictionary = encodings.is_only(basic::Encoding::RLE_DICTIONARY);
            assert!(has_dictionary || encodings.is_only(basic::Encoding::PLAIN), "{encodings:?}");
            has_dictionary
        };
        file.metadata().row_groups().iter().map(has_dictionary).collect()
    }

    #[test]
    fn a_dictionary_is_not_given_up_within_a_group() {
        // 1.5 MB of distinct texts.
        let random = |state: &u64| {
            let state = state ^ state << 13;
            let state = state ^ state >> 7;
            Some(state ^ state << 17)
        };
        let numbers = std::iter::successors(Some(1_u64), random).take(20_000);
        assert_eq!(dictionaries(numbers.map(|number| format!("{:300}", number % 5_000))), [true, true]);
    }

    #[test]
    fn one_frequent_text_among_others_has_no_dictionary() {
        let texts = |share| (0..1_000).map(move |n| if n % 100 < share { "?".to_owned() } else { n.to_string() });
        assert_eq!(dictionaries(texts(30)), [false]);
        assert_eq!(dictionaries(texts(90)), [true]);
    }

    #[test]
    fn a_column_whose_dictionary_did_not_pay_has_none_in_the_next_groups() {
        let text = |n: usize| if n % 50 < 5 { format!("state {}", n % 50) } else { format!("{n:100}") };
        let found = dictionaries((0..).map(text).take(10 * GROUP_BYTES / 100));
        assert_eq!(found[..9], [true, false, false, false, false, false, false, false, true]);
    }

    #[test]
    fn only_texts_that_repeat_have_a_dictionary_and_each_codec_compresses_all_pages() {
        let columns = ["few", "many", "rest"].map(|name| Column::new(name, ColumnType::Text));
        let texts: Vec<_> = (0..2_000).map(|n| [format!("state {}", n % 7), format!("{n}@example.com")]).collect();
        let rows = texts.iter().map(|[few, many]| vec![Some(few.as_bytes()), Some(many.as_bytes()), None]);
        for compression in Format::Parquet.spec().compressions {
            let written = compressed(*compression, &columns, rows.clone()).unwrap();
            let file = SerializedFileReader::new(written).unwrap();
            let entries = file.metadata().row_group(0).columns();
            let dictionaries: Vec<_> = entries.iter().map(|entry| entry.dictionary_page_offset().is_some()).collect();
            assert_eq!(dictionaries, [true, false, false], "{compression}");
            let codec = match compression {
                Compression::Zstd => basic::Compression::ZSTD(ZstdLevel::default()),
                other => codec(*other, None).unwrap(),
            };
            for entry in entries {
                assert_eq!(entry.compression(), codec, "{compression}");
            }
            let (packed, plain) = (entries[1].compressed_size(), entries[1].uncompressed_size());
            let is_packed = packed * 3 < plain * 2;
            assert_eq!(is_packed, *compression != Compression::None, "{compression}: {packed} of {plain}");
            let found = read(&file);
            assert_eq!(found.len(), texts.len(), "{compression}");
            for (row, texts) in found.iter().zip(&texts) {
                assert_eq!(row[..2], texts.clone().map(Field::Str), "{compression}");
            }
        }
    }
}
