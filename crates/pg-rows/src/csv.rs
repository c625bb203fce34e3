//! The lines of CSV by RFC 4180: `\n` line ends, UTF-8, one header line.
//!
//! NULL is an empty field and an empty string is `""`. So `COPY … FROM … CSV HEADER` restores every value exactly
//! (PostgreSQL documentation, "COPY", "CSV Format"). Timestamps are RFC 3339. Other values have Postgres's own form.

use crate::column::{Column, ColumnType};
use crate::text::Lines;
use crate::{Error, value};

#[derive(Clone)]
pub(crate) struct Csv;

impl Lines for Csv {
    fn new(_columns: &[Column]) -> Csv {
        Csv
    }

    fn header(&self, columns: &[Column], out: &mut Vec<u8>) {
        for (i, column) in columns.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            let name = column.name.as_bytes();
            text(marks(name), name, out);
        }
        out.push(b'\n');
    }

    fn row(&self, columns: &[Column], fields: &[Option<&[u8]>], out: &mut Vec<u8>) -> Result<(), Error> {
        for (i, (column, field)) in columns.iter().zip(fields).enumerate() {
            if i > 0 {
                out.push(b',');
            }
            if let Some(field) = field {
                value(column, field, out)?;
            }
        }
        out.push(b'\n');
        Ok(())
    }
}

fn value(column: &Column, field: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    match column.kind {
        ColumnType::Text | ColumnType::Json | ColumnType::Jsonb => {
            let text = value::text(column, field)?;
            let bytes = marks(text);
            if bytes & NOT_ASCII != 0 {
                value::require_utf8(column, text)?;
            }
            self::text(bytes, text, out);
            Ok(())
        }
        // Values of the other types contain no character that needs quotes.
        _ => value::plain(column, field, out),
    }
}

/// Appends a text with these marks. Adds quotes only if a reader would otherwise misread it.
fn text(marks: u8, bytes: &[u8], out: &mut Vec<u8>) {
    // `\.` alone on a line ends the data of a `COPY … FROM` before Postgres 18.
    let quoted = marks & SPECIAL != 0 || bytes.is_empty() || bytes == b"\\.";
    if !quoted {
        out.extend_from_slice(bytes);
        return;
    }
    out.push(b'"');
    for piece in bytes.split_inclusive(|b| *b == b'"') {
        out.extend_from_slice(piece);
        if piece.ends_with(b"\"") {
            out.push(b'"');
        }
    }
    out.push(b'"');
}

/// The mark of a byte that a reader takes for something else than text.
const SPECIAL: u8 = 1;
const NOT_ASCII: u8 = 2;

/// Returns the marks of a text's bytes, found in one pass. Texts are short, so one search for each mark costs more.
fn marks(bytes: &[u8]) -> u8 {
    const MARKS: [u8; 256] = {
        let mut marks = [0; 256];
        let mut byte = 128;
        while byte < 256 {
            marks[byte] = NOT_ASCII;
            byte += 1;
        }
        marks[b'"' as usize] = SPECIAL;
        marks[b',' as usize] = SPECIAL;
        marks[b'\n' as usize] = SPECIAL;
        marks[b'\r' as usize] = SPECIAL;
        marks
    };
    bytes.iter().fold(0, |found, byte| found | MARKS[usize::from(*byte)])
}
