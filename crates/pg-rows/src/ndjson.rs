//! The lines of NDJSON: a JSON object (RFC 8259) for each row, with the columns as members in their order.
//!
//! There is no header, so a file without rows has no bytes.
//!
//! - Integers, floats and numerics are JSON numbers with all digits. A reader that makes doubles of them rounds beyond
//!   2^53.
//! - NaN and the infinities are strings, as `to_json` makes them, because JSON has no such numbers.
//! - A `json` or `jsonb` is embedded, with line ends between its tokens written as spaces. A JSON `null` looks like
//!   NULL.
//! - A `bytea` is a string of hexadecimal digits behind `\x`, as Postgres writes and reads it.
//! - All other values are strings, with the same text as in CSV.

use crate::column::{Column, ColumnType};
use crate::text::Lines;
use crate::{Error, digits, value};

/// The lines of an NDJSON file.
#[derive(Clone)]
pub(crate) struct Ndjson {
    /// The bytes before each value: `{"id":`, `,"name":`, ….
    names: Vec<Vec<u8>>,
}

impl Lines for Ndjson {
    fn new(columns: &[Column]) -> Ndjson {
        let names = columns.iter().enumerate().map(|(i, column)| {
            let mut name = vec![if i == 0 { b'{' } else { b',' }];
            string(column.name.as_bytes(), &mut name);
            name.push(b':');
            name
        });
        Ndjson { names: names.collect() }
    }

    fn header(&self, _columns: &[Column], _out: &mut Vec<u8>) {}

    fn row(&self, columns: &[Column], fields: &[Option<&[u8]>], out: &mut Vec<u8>) -> Result<(), Error> {
        for ((column, name), field) in columns.iter().zip(&self.names).zip(fields) {
            out.extend_from_slice(name);
            match field {
                Some(field) => value(column, field, out)?,
                None => out.extend_from_slice(b"null"),
            }
        }
        out.extend_from_slice(b"}\n");
        Ok(())
    }
}

fn value(column: &Column, field: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    match column.kind {
        ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8 | ColumnType::Bool => value::plain(column, field, out),
        ColumnType::Float4 | ColumnType::Float8 | ColumnType::Numeric => number(column, field, out),
        // Values of these types contain no character that needs an escape.
        ColumnType::Timestamptz | ColumnType::Timestamp | ColumnType::Date | ColumnType::Time | ColumnType::Uuid => {
            out.push(b'"');
            value::plain(column, field, out)?;
            out.push(b'"');
            Ok(())
        }
        ColumnType::Bytea => {
            // The text of a `bytea` begins with a backslash and contains no other.
            out.extend_from_slice(b"\"\\");
            value::plain(column, field, out)?;
            out.push(b'"');
            Ok(())
        }
        ColumnType::Json | ColumnType::Jsonb => json(column, field, out),
        ColumnType::Text => {
            value::require_utf8(column, field)?;
            string(field, out);
            Ok(())
        }
    }
}

/// Appends a number, or a string if JSON has no such number: `NaN`, `Infinity`.
fn number(column: &Column, field: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let begin = out.len();
    value::plain(column, field, out)?;
    if out.last().is_some_and(u8::is_ascii_alphabetic) {
        out.insert(begin, b'"');
        out.push(b'"');
    }
    Ok(())
}

/// Appends a JSON value on one line. Postgres has checked its syntax, so no string in it contains a line end.
fn json(column: &Column, field: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let begin = out.len();
    value::plain(column, field, out)?;
    for byte in &mut out[begin..] {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    Ok(())
}

/// Appends a text in quotes, with the escapes that a JSON string needs (RFC 8259, section 7).
fn string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| ESCAPES[usize::from(*byte)] != 0) {
        let (as_it_is, from) = rest.split_at(at);
        out.extend_from_slice(as_it_is);
        match ESCAPES[usize::from(from[0])] {
            b'u' => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(digits::hex(from[0]));
            }
            escape => out.extend_from_slice(&[b'\\', escape]),
        }
        rest = &from[1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// The character behind the backslash for each byte; 0 if the byte needs no escape.
const ESCAPES: [u8; 256] = {
    let mut escapes = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        escapes[byte] = b'u';
        byte += 1;
    }
    escapes[0x08] = b'b';
    escapes[b'\t' as usize] = b't';
    escapes[b'\n' as usize] = b'n';
    escapes[0x0c] = b'f';
    escapes[b'\r' as usize] = b'r';
    escapes[b'"' as usize] = b'"';
    escapes[b'\\' as usize] = b'\\';
    escapes
};
