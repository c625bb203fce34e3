//! The names of the variables, and the parsers of their values: numbers, sizes, durations.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use crate::config::Error;
use crate::duration;
use crate::job::Retention;

/// The list of all settings, each on a line `#NAME=` with its default.
const EXAMPLE: &str = include_str!("../../.env.example");

/// The variables that the service reads although they are not settings.
const OTHER_VARIABLES: [&str; 5] = ["FAILPOINTS", "PATH", "PGSSLMODE", "PGSSLROOTCERT", "XDG_RUNTIME_DIR"];

/// The prefixes of variables that docker-compose reads from the `.env` in its own folder. A clone of this repository
/// has such a file.
const COMPOSE_PREFIXES: [&str; 2] = ["COMPOSE_", "DOCKER_"];

/// The prefixes of variables that the tools of cloud providers read. The service also reads them if it writes to a
/// bucket.
#[cfg(feature = "buckets")]
const CLOUD_PREFIXES: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];
#[cfg(not(feature = "buckets"))]
const CLOUD_PREFIXES: [&str; 0] = [];

/// The suffixes of variables that contain the secrets of the operator's file. `_URL` alone would accept a misspelt
/// DATABASE_URL.
pub(super) const SECRET_SUFFIXES: [&str; 2] = ["_AMQP_URL", "_SECRET"];

fn settings() -> impl Iterator<Item = &'static str> {
    let is_name =
        |name: &str| name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_' || byte.is_ascii_digit());
    EXAMPLE
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.split_once('='))
        .map(|(name, _)| name)
        .filter(move |name| is_name(name))
}

/// Returns true if a variable belongs to the service itself. The operator's file can't name it for a secret.
pub(super) fn is_setting(name: &str) -> bool {
    settings().any(|setting| setting == name) || OTHER_VARIABLES.contains(&name)
}

/// Returns true if the service, a library of a cloud provider or docker-compose reads this variable of `.env`.
pub(super) fn is_read(name: &str) -> bool {
    is_setting(name)
        || SECRET_SUFFIXES.iter().any(|end| name.ends_with(end))
        || COMPOSE_PREFIXES.iter().chain(&CLOUD_PREFIXES).any(|prefix| name.starts_with(prefix))
}

pub(super) struct Variables(pub(super) HashMap<String, String>);

impl Variables {
    /// An empty value counts as unset, because compose files and shells set empty variables.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Refuses a setting with quotes around it, as `docker run --env-file` hands them over, and one with a control
    /// character, as the end of a line from Windows. The error doesn't quote the value, which may be a secret.
    pub(super) fn refuse_quoted(&self) -> Result<(), Error> {
        for name in settings() {
            // A key that was read from a file ends with a newline.
            let value = self.get(name).map_or("", |value| if name == "CDC_EXPORT_KEY" { value.trim() } else { value });
            let is_quoted = |quote: char| value.len() > 1 && value.starts_with(quote) && value.ends_with(quote);
            if ['"', '\''].into_iter().any(is_quoted) {
                return Err(invalid(name, "there are quotes around its value: take them off"));
            }
            if value.contains(char::is_control) {
                return Err(invalid(name, "its value has a control character, such as a CR or LF at its end"));
            }
        }
        Ok(())
    }

    /// Used for settings that have several variables.
    pub(super) fn name_and_value(&self, name: &'static str) -> Option<(&'static str, &str)> {
        Some((name, self.get(name)?))
    }

    #[cfg(feature = "buckets")]
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.keys().filter_map(|name| Some((name.as_str(), self.get(name)?)))
    }

    /// Parses a value. `expected` completes the message, because the type's own error has too little detail.
    pub(super) fn parsed<T: FromStr>(
        &self,
        name: &'static str,
        default: T,
        expected: impl Display,
    ) -> Result<T, Error> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.parse().map_err(|_| invalid(name, format!("`{value}` is not {expected}")))
    }

    /// Parses a retention: an age such as `30d`, a count such as `500`, or both, as `30d,500`.
    pub(super) fn retention(&self, name: &'static str, default: Option<&str>) -> Result<Retention, Error> {
        let mut retention = Retention::default();
        for part in self.get(name).or(default).into_iter().flat_map(|value| value.split(',')) {
            match (part.trim().parse(), duration::parse(part.trim())) {
                (Ok(count), _) if retention.count.is_none() => retention.count = Some(count),
                (Err(_), Some(age)) if retention.age.is_none() => retention.age = Some(age),
                _ => {
                    return Err(invalid(
                        name,
                        format!("`{part}` is neither an age as 30d nor a count as 500, or is given twice"),
                    ));
                }
            }
        }
        Ok(retention)
    }

    /// Parses a duration of one second or more, such as `7d`.
    pub(super) fn age(&self, name: &'static str, default: Duration) -> Result<Duration, Error> {
        match self.get(name).map(duration::parse) {
            None => Ok(default),
            Some(Some(age)) if age >= Duration::from_secs(1) => Ok(age),
            Some(_) => Err(invalid(name, "not a time of 1s or more, such as 7d or 12h")),
        }
    }

    /// Parses a number of bytes, such as `64MiB`.
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
            invalid(name, why)
        })
    }

    pub(super) fn number(
        &self,
        name: &'static str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, Error> {
        Ok(self.optional_number(name, range)?.unwrap_or(default))
    }

    pub(super) fn optional_number(
        &self,
        name: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, Error> {
        self.optional(name, |text| {
            let number = text.parse().ok().filter(|number| range.contains(number));
            number.ok_or_else(|| format!("`{text}` is not a number from {} to {}", range.start(), range.end()))
        })
    }

    /// Parses one of two words, and returns the value of that word. Returns `None` if the variable is unset.
    pub(super) fn one_of_two<T>(
        &self,
        name: &'static str,
        [(first, is_first), (second, is_second)]: [(&str, T); 2],
    ) -> Result<Option<T>, Error> {
        self.optional(name, |word| match word {
            word if word == first => Ok(is_first),
            word if word == second => Ok(is_second),
            other => Err(format!("`{other}` is neither {first} nor {second}")),
        })
    }

    pub(super) fn optional<T, E: Display>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Error> {
        self.get(name).map(parse).transpose().map_err(|why| invalid(name, why.to_string()))
    }
}

pub(super) fn invalid(name: &'static str, why: impl Into<String>) -> Error {
    Error::Value { name, why: why.into() }
}
