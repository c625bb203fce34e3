//! Collects a column's values of one row group, in the form that Parquet's writer takes.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use parquet::basic::{self, LogicalType, TimeUnit};
use parquet::column::writer::{ColumnWriter, get_typed_column_writer_mut};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;

use crate::column::{Column, ColumnType, ParquetType};
use crate::numeric::{self, Unscaled};
use crate::parquet::elements::Elements;
use crate::{Error, datetime, value};

/// The maximum number of slices passed to the writer at once. Each slice costs memory in the writer.
const BATCH_SLICES: usize = 1024;
/// The number of texts that decide on a dictionary. If no more than this many texts occur again, there are so many
/// (16,000 in a whole group) that a dictionary saves nothing.
const SAMPLE: usize = 256;
const SAMPLE_REPEATS: usize = 2;
pub(super) const UUID_BYTES: usize = size_of::<uuid::Bytes>();
/// The time from Parquet's epoch, 1970, to Postgres's, 2000.
pub(super) const EPOCH_DAYS: i32 = 10_957;
pub(super) const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * datetime::MICROS_PER_DAY;

pub(super) struct Chunk {
    levels: Levels,
    values: Values,
}

/// Parquet's levels, which say where a row begins and where NULLs are.
struct Levels {
    /// The level of a value.
    of_value: i16,
    /// A level for each value, NULL and empty list.
    definition: Vec<i16>,
    /// 0 if a row begins there, 1 if a list goes on. Empty in a column without lists.
    repetition: Vec<i16>,
}

const NULL: i16 = 0;
const VALUE: i16 = 1;
/// The levels of a column of lists.
const NULL_LIST: i16 = 0;
const EMPTY_LIST: i16 = 1;
const NULL_ELEMENT: i16 = 2;
const ELEMENT: i16 = 3;

enum Values {
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float(Vec<f32>),
    Double(Vec<f64>),
    Bool(Vec<bool>),
    Texts(Slices),
    Bytes(Slices),
    Fixed(Slices),
}

/// The concatenated bytes of values, and the end of each.
#[derive(Default)]
struct Slices {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Chunk {
    pub(super) fn of(column: &Column) -> Chunk {
        let values = match types(column).0 {
            basic::Type::INT32 => Values::Int32(Vec::new()),
            basic::Type::INT64 => Values::Int64(Vec::new()),
            basic::Type::FLOAT => Values::Float(Vec::new()),
            basic::Type::DOUBLE => Values::Double(Vec::new()),
            basic::Type::BOOLEAN => Values::Bool(Vec::new()),
            basic::Type::FIXED_LEN_BYTE_ARRAY => Values::Fixed(Slices::default()),
            basic::Type::BYTE_ARRAY | basic::Type::INT96 => match column.kind {
                ColumnType::Json | ColumnType::Jsonb | ColumnType::Bytea => Values::Bytes(Slices::default()),
                _ => Values::Texts(Slices::default()),
            },
        };
        let of_value = if column.is_list { ELEMENT } else { VALUE };
        Chunk { levels: Levels { of_value, definition: Vec::new(), repetition: Vec::new() }, values }
    }

    /// Adds a field. Returns the bytes of memory that it takes.
    pub(super) fn push(&mut self, column: &Column, field: Option<&[u8]>) -> Result<usize, Error> {
        if column.is_list {
            return self.push_list(column, field);
        }
        let size = represented(column, field, |field| self.push_value(column, field))?;
        self.levels.definition.push(if size.is_some() { VALUE } else { NULL });
        Ok(size_of::<i16>() + size.unwrap_or(0))
    }

    /// Adds an array, out of line. Returns the bytes of memory that it takes.
    #[inline(never)]
    fn push_list(&mut self, column: &Column, field: Option<&[u8]>) -> Result<usize, Error> {
        let mut bytes = 0;
        let begin = self.levels.definition.len();
        let elements = represented(column, field, |field| Elements::of(column, field))?;
        let level_of_none = if elements.is_some() { EMPTY_LIST } else { NULL_LIST };
        for element in elements.into_iter().flatten() {
            let size = represented(column, element?, |element| self.push_value(column, element))?;
            self.levels.repetition.push((self.levels.definition.len() > begin).into());
            self.levels.definition.push(if size.is_some() { ELEMENT } else { NULL_ELEMENT });
            bytes += size.unwrap_or(0);
        }
        if self.levels.definition.len() == begin {
            self.levels.repetition.push(0);
            self.levels.definition.push(level_of_none);
        }
        Ok(bytes + 2 * size_of::<i16>() * (self.levels.definition.len() - begin))
    }

    /// Adds a value that is not NULL. Returns the bytes of memory that it takes. After an error nothing is added.
    ///
    /// It is inlined, and so are the functions of whole numbers: otherwise a table of integers takes a third longer.
    #[inline(always)]
    fn push_value(&mut self, column: &Column, field: &[u8]) -> Result<usize, Error> {
        Ok(match &mut self.values {
            Values::Int32(values) => {
                values.push(int32(column, field)?);
                size_of::<i32>()
            }
            Values::Int64(values) => {
                values.push(int64(column, field)?);
                size_of::<i64>()
            }
            Values::Float(values) => {
                values.push(f32::from_be_bytes(value::sized(column, field)?));
                size_of::<f32>()
            }
            Values::Double(values) => {
                values.push(f64::from_be_bytes(value::sized(column, field)?));
                size_of::<f64>()
            }
            Values::Bool(values) => {
                let [byte] = value::sized(column, field)?;
                values.push(byte != 0);
                size_of::<bool>()
            }
            Values::Texts(values) | Values::Bytes(values) | Values::Fixed(values) => values.push(column, field)?,
        })
    }

    /// Returns the number of texts, and their bytes in pages without a dictionary.
    pub(super) fn texts(&self) -> (usize, usize) {
        let Values::Texts(texts) = &self.values else { return (0, 0) };
        (texts.ends.len(), texts.bytes.len() + texts.ends.len() * size_of::<u32>())
    }

    /// Returns true if these are texts of which some occur several times. They are smaller as a dictionary.
    pub(super) fn repeats(&self) -> bool {
        matches!(&self.values, Values::Texts(texts) if texts.repeat())
    }

    pub(super) fn write(self, column: &mut ColumnWriter<'_>) -> Result<(), ParquetError> {
        let Chunk { levels, values } = self;
        match values {
            Values::Int32(values) => write_all::<Int32Type>(&values, &levels, column),
            Values::Int64(values) => write_all::<Int64Type>(&values, &levels, column),
            Values::Float(values) => write_all::<FloatType>(&values, &levels, column),
            Values::Double(values) => write_all::<DoubleType>(&values, &levels, column),
            Values::Bool(values) => write_all::<BoolType>(&values, &levels, column),
            Values::Texts(values) | Values::Bytes(values) => values.write_all::<ByteArrayType>(&levels, column),
            Values::Fixed(values) => values.write_all::<FixedLenByteArrayType>(&levels, column),
        }
    }
}

/// Applies a function to a value that is not NULL. Returns `None` for NULL, and for a value that becomes NULL because
/// Parquet can't represent it.
#[inline(always)]
fn represented<'f, T>(
    column: &Column,
    field: Option<&'f [u8]>,
    value: impl FnOnce(&'f [u8]) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    match field.map(value) {
        None => Ok(None),
        Some(Err(Error::NotInFormat { .. })) if column.null_if_unrepresentable => Ok(None),
        Some(value) => value.map(Some),
    }
}

fn write_all<T: DataType>(values: &[T::T], levels: &Levels, column: &mut ColumnWriter<'_>) -> Result<(), ParquetError> {
    let all = levels.slice(0..levels.definition.len());
    get_typed_column_writer_mut::<T>(column).write_batch(values, Some(all.0), all.1).map(drop)
}

impl Levels {
    /// Returns these definition levels, and the repetition levels that belong to them.
    fn slice(&self, range: Range<usize>) -> (&[i16], Option<&[i16]>) {
        (&self.definition[range.clone()], self.repetition.get(range))
    }

    /// Returns the end of a batch of whole rows. It is longer than [`BATCH_SLICES`] only where a list is.
    fn end_of_batch(&self, begin: usize) -> usize {
        let end = (begin + BATCH_SLICES).min(self.definition.len());
        let rest = self.repetition.get(end..).unwrap_or_default();
        end + rest.iter().take_while(|level| **level != 0).count()
    }
}

impl Slices {
    /// Adds a value. Returns the bytes of memory that it takes.
    #[inline(always)]
    fn push(&mut self, column: &Column, field: &[u8]) -> Result<usize, Error> {
        let begin = self.bytes.len();
        match (column.kind, column.parquet) {
            (ColumnType::Bytea, _) => self.bytes.extend_from_slice(field),
            (ColumnType::Uuid, ParquetType::OfKind) => {
                self.bytes.extend_from_slice(&value::sized::<UUID_BYTES>(column, field)?);
            }
            (ColumnType::Numeric, ParquetType::Decimal { precision, .. }) => self.decimal(column, field, precision)?,
            _ => value::plain(column, field, &mut self.bytes)?,
        }
        self.ends.push(self.bytes.len());
        Ok(self.bytes.len() - begin + size_of::<usize>())
    }

    /// Adds a number as its units, the highest byte first (Parquet's "DECIMAL").
    #[inline(never)]
    fn decimal(&mut self, column: &Column, field: &[u8], precision: u8) -> Result<(), Error> {
        let bytes = units(column, field)?.to_be_bytes();
        self.bytes.extend_from_slice(&bytes[bytes.len() - decimal_bytes(precision)..]);
        Ok(())
    }

    /// Returns true if several values of a sample occur again, or if one or two are most of it.
    fn repeat(&self) -> bool {
        let mut counts = HashMap::with_capacity(SAMPLE);
        let (mut sampled, mut repeated, mut repeats) = (0, 0, 0);
        for index in (0..self.ends.len()).step_by(self.ends.len().div_ceil(SAMPLE).max(1)) {
            let begin = index.checked_sub(1).map_or(0, |before| self.ends[before]);
            let count = counts.entry(&self.bytes[begin..self.ends[index]]).or_insert(0);
            *count += 1;
            sampled += 1;
            repeated += usize::from(*count == 2);
            repeats += usize::from(*count > 1);
            if repeated > SAMPLE_REPEATS {
                return true;
            }
        }
        repeats > SAMPLE_REPEATS && repeats * 4 > sampled * 3
    }

    fn write_all<T>(&self, levels: &Levels, column: &mut ColumnWriter<'_>) -> Result<(), ParquetError>
    where
        T: DataType,
        T::T: From<ByteArray>,
    {
        let (mut begin, mut rest, mut done) = (0, self.ends.as_slice(), 0);
        while done < levels.definition.len() {
            let upto = levels.end_of_batch(done);
            let (definition, repetition) = levels.slice(done..upto);
            let present = definition.iter().filter(|level| **level == levels.of_value).count();
            let (batch, others) = rest.split_at(present);
            let end = batch.last().copied().unwrap_or(begin);
            let slices: Vec<T::T> = slices(&self.bytes[begin..end], begin, batch).map(T::T::from).collect();
            get_typed_column_writer_mut::<T>(column).write_batch(&slices, Some(definition), repetition)?;
            (begin, rest, done) = (end, others, upto);
        }
        Ok(())
    }
}

/// Returns the type in which a column's values are stored, and the type that a reader takes them for. A `DECIMAL` is
/// the smallest integer that has its digits.
pub(super) fn types(column: &Column) -> (basic::Type, Option<LogicalType>) {
    match (column.kind, column.parquet) {
        (_, ParquetType::Text) => (basic::Type::BYTE_ARRAY, Some(LogicalType::String)),
        (_, ParquetType::Decimal { precision, scale }) => {
            let stored = match precision {
                ..=9 => basic::Type::INT32,
                10..=18 => basic::Type::INT64,
                _ => basic::Type::FIXED_LEN_BYTE_ARRAY,
            };
            (stored, Some(LogicalType::decimal(scale.into(), precision.into())))
        }
        (ColumnType::Int2, _) => (basic::Type::INT32, Some(LogicalType::integer(16, true))),
        (ColumnType::Int4, _) => (basic::Type::INT32, None),
        (ColumnType::Int8, _) => (basic::Type::INT64, None),
        (ColumnType::Float4, _) => (basic::Type::FLOAT, None),
        (ColumnType::Float8, _) => (basic::Type::DOUBLE, None),
        (ColumnType::Bool, _) => (basic::Type::BOOLEAN, None),
        (ColumnType::Text | ColumnType::Numeric, _) => (basic::Type::BYTE_ARRAY, Some(LogicalType::String)),
        (ColumnType::Uuid, _) => (basic::Type::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Uuid)),
        (ColumnType::Bytea, _) => (basic::Type::BYTE_ARRAY, None),
        (ColumnType::Json | ColumnType::Jsonb, _) => (basic::Type::BYTE_ARRAY, Some(LogicalType::Json)),
        (ColumnType::Timestamptz, _) => (basic::Type::INT64, Some(LogicalType::timestamp(true, TimeUnit::MICROS))),
        (ColumnType::Timestamp, _) => (basic::Type::INT64, Some(LogicalType::timestamp(false, TimeUnit::MICROS))),
        (ColumnType::Date, _) => (basic::Type::INT32, Some(LogicalType::Date)),
        (ColumnType::Time, _) => (basic::Type::INT64, Some(LogicalType::time(false, TimeUnit::MICROS))),
    }
}

/// Returns the size of the values of a column that is stored as `FIXED_LEN_BYTE_ARRAY`, in bytes.
pub(super) fn fixed_bytes(column: &Column) -> usize {
    match column.parquet {
        ParquetType::Decimal { precision, .. } => decimal_bytes(precision),
        ParquetType::OfKind | ParquetType::Text => UUID_BYTES,
    }
}

/// Returns the fewest bytes that can hold every signed number with this many digits.
fn decimal_bytes(precision: u8) -> usize {
    let most = 10_u128.pow(precision.into()) - 1;
    (most.ilog2() as usize + 1) / 8 + 1
}

/// Returns the values of a batch. `ends` counts from the first byte of the group. The group has `begin` bytes before
/// the batch.
fn slices(bytes: &[u8], begin: usize, ends: &[usize]) -> impl Iterator<Item = ByteArray> {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut from = 0;
    ends.iter().map(move |end| {
        let from = std::mem::replace(&mut from, end - begin);
        ByteArray::from(bytes.slice(from..end - begin))
    })
}

#[inline(always)]
fn int32(column: &Column, field: &[u8]) -> Result<i32, Error> {
    match column.kind {
        ColumnType::Int2 => Ok(i16::from_be_bytes(value::sized(column, field)?).into()),
        ColumnType::Date => {
            let day = i32::from_be_bytes(value::sized(column, field)?);
            // The largest number, infinity, is beyond the end anyway.
            let since_1970 = Some(day).filter(|day| *day > i32::MIN).and_then(|day| day.checked_add(EPOCH_DAYS));
            since_1970.ok_or_else(|| not_in_format(column, field))
        }
        ColumnType::Numeric => decimal(column, field),
        _ => Ok(i32::from_be_bytes(value::sized(column, field)?)),
    }
}

#[inline(always)]
fn int64(column: &Column, field: &[u8]) -> Result<i64, Error> {
    match column.kind {
        ColumnType::Time => {
            let micros = value::time(column, field)?;
            if micros < datetime::MICROS_PER_DAY { Ok(micros) } else { Err(not_in_format(column, field)) }
        }
        ColumnType::Timestamptz | ColumnType::Timestamp => {
            let micros = i64::from_be_bytes(value::sized(column, field)?);
            // The largest number, infinity, is beyond the end anyway.
            let since_1970 =
                Some(micros).filter(|micros| *micros > i64::MIN).and_then(|micros| micros.checked_add(EPOCH_MICROS));
            since_1970.ok_or_else(|| not_in_format(column, field))
        }
        ColumnType::Numeric => decimal(column, field),
        _ => Ok(i64::from_be_bytes(value::sized(column, field)?)),
    }
}

/// Reads a number in units of its column's last place, out of line.
#[inline(never)]
fn decimal<T: TryFrom<i128>>(column: &Column, field: &[u8]) -> Result<T, Error> {
    T::try_from(units(column, field)?).map_err(|_| value::wrong_type(column))
}

fn units(column: &Column, field: &[u8]) -> Result<i128, Error> {
    let ParquetType::Decimal { precision, scale } = column.parquet else { return Err(value::wrong_type(column)) };
    match numeric::unscaled(field, scale) {
        Some(Unscaled::Units(units)) if units.unsigned_abs() < 10_u128.pow(precision.into()) => Ok(units),
        Some(Unscaled::NotANumber) => Err(not_in_format(column, field)),
        _ => Err(value::wrong_type(column)),
    }
}

fn not_in_format(column: &Column, field: &[u8]) -> Error {
    let mut text = Vec::new();
    match value::plain(column, field, &mut text) {
        Ok(()) => {
            let value = String::from_utf8_lossy(&text).into_owned();
            Error::NotInFormat { column: column.name.to_string(), value }
        }
        Err(error) => error,
    }
}
