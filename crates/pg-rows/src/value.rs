//! A value's plain text, and the checks of its binary form, which all formats share.

use uuid::Uuid;

use crate::column::{Column, ColumnType};
use crate::{Error, datetime, digits, float, numeric};

/// Version of the binary form of `jsonb`, and the only one (`jsonb_send` in Postgres's sources).
const JSONB_VERSION: u8 = 1;

/// Appends a value's text. Only a text or a JSON may contain a character that has a meaning in a format.
///
/// Types that nearly every table has are inlined here. Inlining all types would make each slower.
#[inline]
pub(crate) fn plain(column: &Column, field: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    match column.kind {
        ColumnType::Int8 => sized(column, field).map(|bytes| integer(i64::from_be_bytes(bytes), out)),
        ColumnType::Bool => {
            sized(column, field).map(|[byte]| out.extend_from_slice(if byte == 0 { b"false" } else { b"true" }))
        }
        ColumnType::Timestamptz => {
            sized(column, field).map(|bytes| datetime::timestamptz(i64::from_be_bytes(bytes), out))
        }
        ColumnType::Int2 => rarer(column, field, out, |bytes, out| integer(i16::from_be_bytes(bytes), out)),
        ColumnType::Int4 => rarer(column, field, out, |bytes, out| integer(i32::from_be_bytes(bytes), out)),
        ColumnType::Float4 => rarer(column, field, out, |bytes, out| float::float4(f32::from_be_bytes(bytes), out)),
        ColumnType::Float8 => rarer(column, field, out, |bytes, out| float::float8(f64::from_be_bytes(bytes), out)),
        ColumnType::Numeric => numeric(column, field, out),
        ColumnType::Timestamp => {
            rarer(column, field, out, |bytes, out| datetime::timestamp(i64::from_be_bytes(bytes), out))
        }
        ColumnType::Date => rarer(column, field, out, |bytes, out| datetime::date(i32::from_be_bytes(bytes), out)),
        ColumnType::Time => time(column, field).map(|micros| datetime::time(micros, out)),
        ColumnType::Uuid => rarer(column, field, out, |bytes, out| uuid(Uuid::from_bytes(bytes), out)),
        ColumnType::Bytea => {
            bytea(field, out);
            Ok(())
        }
        ColumnType::Text | ColumnType::Json | ColumnType::Jsonb => checked_text(column, field, out),
    }
}

/// Returns the text within the binary form of a text or a JSON. It may not be UTF-8.
pub(crate) fn text<'f>(column: &Column, field: &'f [u8]) -> Result<&'f [u8], Error> {
    if column.kind != ColumnType::Jsonb {
        return Ok(field);
    }
    match field.split_first() {
        Some((&JSONB_VERSION, text)) => Ok(text),
        _ => Err(wrong_type(column)),
    }
}

/// Appends a value of one size, out of line.
#[inline(never)]
fn rarer<const N: usize>(
    column: &Column,
    field: &[u8],
    out: &mut Vec<u8>,
    write: impl Fn([u8; N], &mut Vec<u8>),
) -> Result<(), Error> {
    sized(column, field).map(|bytes| write(bytes, out))
}

#[inline(never)]
fn numeric(column: &Column, field: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    numeric::text(field, out).ok_or_else(|| wrong_type(column))
}

#[inline(never)]
fn bytea(field: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"\\x");
    out.reserve(2 * field.len());
    field.iter().for_each(|byte| out.extend_from_slice(digits::hex(*byte)));
}

#[inline(never)]
fn checked_text(column: &Column, field: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let text = text(column, field)?;
    require_utf8(column, text)?;
    out.extend_from_slice(text);
    Ok(())
}

fn uuid(uuid: Uuid, out: &mut Vec<u8>) {
    out.extend_from_slice(uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
}

fn integer(number: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Reads a time of day in microseconds, `24:00:00` included.
pub(crate) fn time(column: &Column, field: &[u8]) -> Result<i64, Error> {
    let micros = i64::from_be_bytes(sized(column, field)?);
    if (0..=datetime::MICROS_PER_DAY).contains(&micros) { Ok(micros) } else { Err(wrong_type(column)) }
}

/// Reads a field of a type whose values all have `N` bytes.
pub(crate) fn sized<const N: usize>(column: &Column, field: &[u8]) -> Result<[u8; N], Error> {
    field.try_into().map_err(|_| wrong_type(column))
}

pub(crate) fn wrong_type(column: &Column) -> Error {
    Error::WrongType(column.name.to_string())
}

pub(crate) fn require_utf8(column: &Column, field: &[u8]) -> Result<(), Error> {
    std::str::from_utf8(field).map(drop).map_err(|_| Error::InvalidText(column.name.to_string()))
}

pub(crate) fn require_shape(columns: &[Column], fields: &[Option<&[u8]>]) -> Result<(), Error> {
    if fields.len() == columns.len() {
        Ok(())
    } else {
        Err(Error::WrongShape { expected: columns.len(), found: fields.len() })
    }
}
