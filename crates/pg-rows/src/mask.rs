//! Masks: they replace a column's values before a format writes them.

use std::sync::Arc;

use ring::hmac;

use crate::column::{Column, ColumnType, Mask};
use crate::{Error, datetime, digits, value};

/// The characters before the last ones of a value.
const HIDDEN: &[u8] = b"****";

/// Appends the binary form of the value that is written for a value of the column. Returns false for NULL.
fn replace(mask: &Mask, column: &Column, field: &[u8], out: &mut Vec<u8>) -> Result<bool, Error> {
    match mask {
        Mask::Null => return Ok(false),
        Mask::Fixed(text) => out.extend_from_slice(text.as_bytes()),
        Mask::Year => match year(column, field)? {
            Some(year) => out.extend_from_slice(&year.to_be_bytes()),
            None => return Ok(false),
        },
        Mask::Last(most) => {
            let text = text(column, field)?;
            // Neither the sign of a number nor the blanks around a text are a part of what is hidden.
            let text = text.trim().trim_start_matches(['+', '-']);
            let length = text.chars().count();
            let shown = usize::from(*most).min(length / 2);
            let last: String = text.chars().skip(length - shown).collect();
            out.extend_from_slice(HIDDEN);
            out.extend_from_slice(last.as_bytes());
        }
        Mask::Hmac(key) => {
            value::plain(column, field, out)?;
            let tag = hmac::sign(key, out);
            out.clear();
            tag.as_ref().iter().for_each(|byte| out.extend_from_slice(digits::hex(*byte)));
        }
    }
    Ok(true)
}

fn text(column: &Column, field: &[u8]) -> Result<String, Error> {
    let mut text = Vec::new();
    value::plain(column, field, &mut text)?;
    String::from_utf8(text).map_err(|_| Error::InvalidText(column.name.to_string()))
}

fn year(column: &Column, field: &[u8]) -> Result<Option<i32>, Error> {
    match column.kind {
        ColumnType::Date => value::sized(column, field).map(|bytes| datetime::year_of_date(i32::from_be_bytes(bytes))),
        ColumnType::Timestamp | ColumnType::Timestamptz => {
            value::sized(column, field).map(|bytes| datetime::year_of_moment(i64::from_be_bytes(bytes)))
        }
        _ => Err(value::wrong_type(column)),
    }
}

/// The masked columns of a layout.
#[derive(Clone, Debug)]
pub(crate) struct FieldMasks(Arc<[(usize, Column, Mask)]>);

impl FieldMasks {
    /// Takes the masks from the columns, which then have the types that are written.
    pub(crate) fn take(columns: &mut [Column]) -> FieldMasks {
        let mut masks = Vec::new();
        for (at, column) in columns.iter_mut().enumerate() {
            if let Some(mask) = column.mask.take() {
                let written = Column { name: column.name.clone(), ..Column::new("", mask.kind()) };
                masks.push((at, std::mem::replace(column, written), mask));
            }
        }
        FieldMasks(masks.into())
    }

    pub(crate) fn are_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Replaces the fields of masked columns. The values that are written are in `values`, one for each mask.
    pub(crate) fn replace<'v>(
        &self,
        fields: &[Option<&'v [u8]>],
        values: &'v mut Vec<MaskedValue>,
    ) -> Result<Vec<Option<&'v [u8]>>, Error> {
        values.resize_with(self.0.len(), MaskedValue::default);
        for ((at, column, mask), value) in self.0.iter().zip(&mut *values) {
            value.bytes.clear();
            value.is_null = match fields.get(*at).copied().flatten() {
                Some(field) => !replace(mask, column, field, &mut value.bytes)?,
                None => true,
            };
        }
        let mut replaced = fields.to_vec();
        for ((at, ..), value) in self.0.iter().zip(&*values) {
            if let Some(field) = replaced.get_mut(*at) {
                *field = Some(value.bytes.as_slice()).filter(|_| !value.is_null);
            }
        }
        Ok(replaced)
    }
}

/// The value that is written in place of another one.
#[derive(Debug, Default)]
pub(crate) struct MaskedValue {
    bytes: Vec<u8>,
    is_null: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(mask: &Mask, kind: ColumnType, field: &[u8]) -> Option<String> {
        let mut out = Vec::new();
        let is_there = replace(mask, &Column::new("v", kind), field, &mut out).unwrap();
        let text = match mask {
            Mask::Year => out.try_into().ok().map(|bytes| i32::from_be_bytes(bytes).to_string()),
            _ => String::from_utf8(out).ok(),
        };
        text.filter(|_| is_there)
    }

    #[test]
    fn the_last_characters_are_at_most_half_of_the_text() {
        for (text, most, shown) in [
            ("0171234567", 4, "****4567"),
            ("12345678", 4, "****5678"),
            ("1234567", 4, "****567"),
            ("ab", 4, "****b"),
            ("a", 4, "****"),
            ("+4", 4, "****"),
            ("", 4, "****"),
            ("äöüß", 1, "****ß"),
            ("abcd    ", 4, "****cd"),
            ("    abcd", 4, "****cd"),
        ] {
            assert_eq!(masked(&Mask::Last(most), ColumnType::Text, text.as_bytes()).as_deref(), Some(shown), "{text}");
        }
        assert_eq!(masked(&Mask::Last(2), ColumnType::Int4, &12_345_i32.to_be_bytes()).as_deref(), Some("****45"));
        assert_eq!(masked(&Mask::Last(2), ColumnType::Int4, &(-7_i32).to_be_bytes()).as_deref(), Some("****"));
    }

    /// The third test case of RFC 4231, and a number whose text is masked.
    #[test]
    fn a_token_is_the_hmac_of_the_text() {
        let key = |secret: &[u8]| Mask::Hmac(hmac::Key::new(hmac::HMAC_SHA256, secret));
        assert_eq!(
            masked(&key(b"Jefe"), ColumnType::Text, b"what do ya want for nothing?").as_deref(),
            Some("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")
        );
        let number = masked(&key(b"Jefe"), ColumnType::Int4, &42_i32.to_be_bytes());
        assert_eq!(number, masked(&key(b"Jefe"), ColumnType::Text, b"42"));
        assert_ne!(number, masked(&key(b"other"), ColumnType::Text, b"42"));
    }

    #[test]
    fn a_year_is_that_of_postgres() {
        let date = |days: i32| masked(&Mask::Year, ColumnType::Date, &days.to_be_bytes());
        // 2000-01-01, 1999-12-31, 0001-01-01, 0001-12-31 BC, the first and the last day of Postgres.
        for (days, year) in [(0, "2000"), (-1, "1999"), (-730_119, "1"), (-730_120, "-1"), (-2_451_545, "-4714")] {
            assert_eq!(date(days).as_deref(), Some(year), "{days}");
        }
        assert_eq!(date(2_145_031_948).as_deref(), Some("5874897"));
        assert_eq!((date(i32::MAX), date(i32::MIN)), (None, None));
        let moment = |micros: i64| masked(&Mask::Year, ColumnType::Timestamptz, &micros.to_be_bytes());
        assert_eq!((moment(-1).as_deref(), moment(0).as_deref(), moment(i64::MAX)), (Some("1999"), Some("2000"), None));
    }
}
