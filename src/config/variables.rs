//! Names of variables, and parsers of their values: numbers, sizes, times, modes.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::str::FromStr;
use std::time::Duration;

use crate::config::Error;
use crate::dataset::name::hint;
use crate::duration;
use crate::job::Retention;

/// The list of all settings, each on a line `#NAME=` with its default.
const EXAMPLE: &str = include_str!("../../.env.example");

/// Variables that the service reads and that are no settings.
const NO_SETTINGS: [&str; 5] = ["FAILPOINTS", "PATH", "PGSSLMODE", "PGSSLROOTCERT", "XDG_RUNTIME_DIR"];

/// Prefixes of variables that docker-compose reads from the `.env` beside its file. A clone of this repository has such
/// a file.
const OF_COMPOSE: [&str; 2] = ["COMPOSE_", "DOCKER_"];

/// Prefixes of variables that the clouds' own programs read, and the service too if it writes to a bucket.
#[cfg(feature = "buckets")]
const OF_CLOUDS: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];
#[cfg(not(feature = "buckets"))]
const OF_CLOUDS: [&str; 0] = [];

/// Suffixes of variables that have the secrets of the operator's file. `_URL` alone would let a slip in DATABASE_URL
/// pass.
pub(super) const OF_SECRETS: [&str; 2] = ["_AMQP_URL", "_SECRET"];

/// Least similarity (Jaro-Winkler, at most 1) of a variable's name to a setting's name that counts as a slip.
const NEAR: f64 = 0.9;

/// Shortest name of a setting that a slip is looked for: shorter names are similar to too many others, as `HOST` to
/// `HOSTNAME`.
const SHORTEST: usize = 7;

/// The end of a message that there is no setting of this name: it suggests a similar one.
pub(super) fn near(name: &str) -> String {
    hint(&comparable(name), settings())
}

/// Makes a name comparable with names of settings, which call every folder DIR.
fn comparable(name: &str) -> String {
    name.to_uppercase().replace("DIRECTORY", "DIR").replace("FOLDER", "DIR")
}

/// The names of all settings.
fn settings() -> impl Iterator<Item = &'static str> {
    let is_name =
        |name: &str| name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_' || byte.is_ascii_digit());
    EXAMPLE
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.split_once('='))
        .map(|(name, _)| name)
        .filter(move |name| is_name(name))
}

/// Returns true if a variable is one of the service's own. The operator's file can't name it as one that has a secret.
pub(super) fn is_setting(name: &str) -> bool {
    settings().any(|setting| setting == name) || NO_SETTINGS.contains(&name)
}

/// Returns true if this service, a library of its cloud or docker-compose reads a variable of `.env`.
pub(super) fn is_read(name: &str) -> bool {
    is_setting(name)
        || OF_SECRETS.iter().any(|end| name.ends_with(end))
        || OF_COMPOSE.iter().chain(&OF_CLOUDS).any(|prefix| name.starts_with(prefix))
}

/// A variable of the environment whose name is similar to a setting's.
#[derive(Debug, PartialEq, Eq)]
pub struct Misspelt {
    name: String,
    setting: &'static str,
}

impl Display for Misspelt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Misspelt { name, setting } = self;
        write!(f, "the variable {name} is no setting, and is ignored: is {setting} meant, which is unset?")
    }
}

/// The variables' values, by their names.
pub(super) struct Variables(pub(super) HashMap<String, String>);

impl Variables {
    /// A variable's value. An empty value counts as unset: compose files and shells set variables so.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A variable's name with its value, if it is set. For settings that several variables may have.
    pub(super) fn named(&self, name: &'static str) -> Option<(&'static str, &str)> {
        Some((name, self.get(name)?))
    }

    /// All variables that are set.
    #[cfg(feature = "buckets")]
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.keys().filter_map(|name| Some((name.as_str(), self.get(name)?)))
    }

    /// The variables that are no settings and are named like a setting that is unset, sorted by name.
    pub(super) fn misspelt(&self) -> Vec<Misspelt> {
        let mut found: Vec<_> =
            self.0.keys().filter(|name| !is_read(name)).filter_map(|name| self.meant(name)).collect();
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// The variable that was probably meant to be DATABASE_URL, if that is unset. It has a database's URL, and its name
    /// is at most two edits away, since other programs have a DATABASE_URL_TEST or a DATABASE_USER.
    pub(super) fn misspelt_database_url(&self) -> Option<&str> {
        const SETTING: &str = "DATABASE_URL";
        let is_near = |name: &str| strsim::damerau_levenshtein(&name.to_uppercase(), SETTING) <= 2;
        let is_url = |value: &str| value.starts_with("postgres://") || value.starts_with("postgresql://");
        let found = self.0.iter().filter(|(name, value)| !is_read(name) && is_near(name) && is_url(value));
        // The same one of several is named each time.
        found.map(|(name, _)| name.as_str()).min().filter(|_| self.get(SETTING).is_none())
    }

    fn meant(&self, name: &str) -> Option<Misspelt> {
        let upper = comparable(name);
        let long = settings().filter(|setting| setting.len() >= SHORTEST);
        let alike = long.filter(|setting| setting.starts_with(upper.chars().next().unwrap_or_default()));
        let scored = alike.map(|setting| (strsim::jaro_winkler(&upper, setting), setting));
        let (_, setting) = scored.filter(|(score, _)| *score >= NEAR).max_by(|(a, _), (b, _)| a.total_cmp(b))?;
        // A setting that is set was not missed.
        self.get(setting).is_none().then(|| Misspelt { name: name.to_owned(), setting })
    }

    /// A value of a type whose error says too little: `expected` completes the message.
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
            match (part.trim().parse(), duration::parse(part.trim())) {
                (Ok(count), _) if retention.count.is_none() => retention.count = Some(count),
                (Err(_), Some(age)) if retention.age.is_none() => retention.age = Some(age),
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

    /// A time of a second or more, as `7d`.
    pub(super) fn age(&self, name: &'static str, default: Duration) -> Result<Duration, Error> {
        match self.get(name).map(duration::parse) {
            None => Ok(default),
            Some(Some(age)) if age >= Duration::from_secs(1) => Ok(age),
            Some(_) => Err(bad(name, "not a time of 1s or more, such as 7d or 12h")),
        }
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

    /// A number of a range.
    pub(super) fn number(
        &self,
        name: &'static str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, Error> {
        Ok(self.optional_number(name, range)?.unwrap_or(default))
    }

    /// A number of a range. `None` if the variable is unset.
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

    /// One of two words, and the value that each stands for. `None` if the variable is unset.
    pub(super) fn either<T>(
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

    /// A value without a default. `None` if the variable is unset.
    pub(super) fn optional<T, E: Display>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Error> {
        self.get(name).map(parse).transpose().map_err(|why| bad(name, why.to_string()))
    }
}

/// Reads a file mode in octal digits, as chmod takes it. The service, the file's owner, has to be able to read the
/// file.
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
