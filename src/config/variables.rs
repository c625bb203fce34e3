//! Variables, and the parsing of their values: numbers, sizes, times, modes.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;

use crate::config::Error;
use crate::job::Retention;

/// The variables' values, by their names.
pub(super) struct Variables(pub(super) HashMap<String, String>);

impl Variables {
    /// A variable's value. An empty value counts as unset: compose files and shells set variables so.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn parsed<T: FromStr>(
        &self,
        name: &'static str,
        default: T,
        expected: impl Display,
    ) -> Result<T, Error> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.parse().map_err(|_| bad(name, format!("`{value}` is not {expected}")))
    }

    /// `30d`, `500` or both, as `30d,500`.
    pub(super) fn retention(&self, name: &'static str) -> Result<Retention, Error> {
        let mut retention = Retention::default();
        for part in self.get(name).into_iter().flat_map(|value| value.split(',')) {
            match (part.trim().parse(), humantime::parse_duration(part.trim())) {
                (Ok(count), _) if retention.count.is_none() => retention.count = Some(count),
                (Err(_), Ok(age)) if retention.age.is_none() => retention.age = Some(age),
                _ => {
                    return Err(bad(
                        name,
                        format!("`{part}` is neither an age as 30d nor a count as 500, or is given twice"),
                    ));
                }
            }
        }
        Ok(retention)
    }

    /// A number of bytes, as `64MiB`.
    pub(super) fn bytes(
        &self,
        name: &'static str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, Error> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let (digits, unit) = value.split_at(value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len()));
        let scale = match unit.trim_start() {
            "" | "B" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1 << 30),
            _ => None,
        };
        let bytes = digits.parse().ok().zip(scale).and_then(|(number, scale): (u64, u64)| number.checked_mul(scale));
        bytes.filter(|bytes| range.contains(bytes)).ok_or_else(|| {
            let why = format!("`{value}` is no size from {} to {} bytes, such as 64MiB", range.start(), range.end());
            bad(name, why)
        })
    }

    pub(super) fn number(
        &self,
        name: &'static str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, Error> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        let number = self.parsed(name, default, &expected)?;
        if range.contains(&number) { Ok(number) } else { Err(bad(name, format!("`{number}` is not {expected}"))) }
    }
}

/// Reads a file mode in octal digits, as chmod takes it. The service, the file's owner, has to be able to read the file.
pub(super) fn read_mode(text: &str) -> Result<u32, Error> {
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| is_octal);
    mode.filter(|mode| *mode <= 0o666 && mode & 0o111 == 0 && mode & 0o400 != 0).ok_or_else(|| {
        let why = "no mode of a file in octal digits that its owner may read and nobody run, such as 0640";
        bad("OUTPUT_MODE", format!("`{text}` is {why}"))
    })
}

/// The error of a variable's value that can't be used.
pub(super) fn bad(name: &'static str, why: impl Into<String>) -> Error {
    Error::Value { name, why: why.into() }
}
