//! The masks of a dataset: what its files have in place of a column's values.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::str::FromStr;

use pg_rows::column::{ColumnType, Mask};
use ring::digest::{SHA256, digest};
use ring::hmac;

/// The most characters that `last N` may show.
const MOST_SHOWN: u8 = 64;

/// The fewest characters of a secret.
const SHORTEST_SECRET: usize = 16;

/// The fewest different characters of a secret.
const FEWEST_DIFFERENT: usize = 8;

/// The masks of a dataset, by the names of columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    pub rules: BTreeMap<String, MaskRule>,
    /// True if the table may lack some of the columns, as the tables of a pattern may.
    pub are_optional: bool,
}

/// The rule by which a column's values are replaced. It is displayed and parsed as the operator's file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MaskRule {
    /// A token of the value's text, which is the same for equal values: `hmac`.
    Hmac,
    /// NULL: `null`.
    Null,
    /// The year of a date or a timestamp: `year`.
    Year,
    /// The last characters, at most this many, and at most half of the value: `last 4`.
    Last(u8),
    /// This text: `fixed ***`.
    Fixed(String),
}

impl FromStr for MaskRule {
    type Err = String;

    fn from_str(text: &str) -> Result<MaskRule, String> {
        let number = |digits: &str| digits.parse().ok().filter(|count| (1..=MOST_SHOWN).contains(count));
        match text.split_once(' ') {
            None if text == "hmac" => Ok(MaskRule::Hmac),
            None if text == "null" => Ok(MaskRule::Null),
            None if text == "year" => Ok(MaskRule::Year),
            Some(("last", count)) => {
                let why = || format!("a number from 1 to {MOST_SHOWN} is expected behind `last`");
                number(count).map(MaskRule::Last).ok_or_else(why)
            }
            Some(("fixed", text)) => Ok(MaskRule::Fixed(text.to_owned())),
            _ => Err(format!("`{text}` is none of hmac, null, year, `last N` and `fixed TEXT`")),
        }
    }
}

impl fmt::Display for MaskRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaskRule::Hmac => f.write_str("hmac"),
            MaskRule::Null => f.write_str("null"),
            MaskRule::Year => f.write_str("year"),
            MaskRule::Last(count) => write!(f, "last {count}"),
            MaskRule::Fixed(text) => write!(f, "fixed {text}"),
        }
    }
}

impl MaskRule {
    /// Returns the Postgres type of the values in the files.
    pub fn file_type(&self) -> &'static str {
        match self {
            MaskRule::Year => "integer",
            MaskRule::Hmac | MaskRule::Null | MaskRule::Last(_) | MaskRule::Fixed(_) => "text",
        }
    }

    /// Returns true if values of this type can be masked.
    pub fn takes(&self, kind: ColumnType) -> bool {
        match self {
            MaskRule::Year => matches!(kind, ColumnType::Date | ColumnType::Timestamp | ColumnType::Timestamptz),
            // The last characters of these are all that there is.
            MaskRule::Last(_) => !matches!(kind, ColumnType::Bool | ColumnType::Bytea),
            MaskRule::Hmac | MaskRule::Null | MaskRule::Fixed(_) => true,
        }
    }

    /// Returns the mask for the encoder. `None` if the rule needs a secret, and there is none.
    pub fn mask(&self, secret: Option<&MaskSecret>) -> Option<Mask> {
        Some(match self {
            MaskRule::Hmac => Mask::Hmac(secret?.key.clone()),
            MaskRule::Null => Mask::Null,
            MaskRule::Year => Mask::Year,
            MaskRule::Last(count) => Mask::Last(*count),
            MaskRule::Fixed(text) => Mask::Fixed(text.as_str().into()),
        })
    }
}

/// The key of all `hmac` masks.
#[derive(Clone, Debug)]
pub struct MaskSecret {
    // Its `Debug` shows no bytes.
    key: hmac::Key,
    /// A hash by which the database recognizes the secret.
    pub fingerprint: String,
}

impl FromStr for MaskSecret {
    type Err = String;

    fn from_str(text: &str) -> Result<MaskSecret, String> {
        // The message doesn't quote the text, which is a secret.
        let characters = || text.chars().filter(|c| !c.is_whitespace());
        if characters().count() < SHORTEST_SECRET || characters().collect::<HashSet<_>>().len() < FEWEST_DIFFERENT {
            return Err(format!(
                "a secret of at least {SHORTEST_SECRET} characters, {FEWEST_DIFFERENT} of them different, is expected"
            ));
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes());
        let tag = hmac::sign(&key, b"cdc-export: the fingerprint of MASK_SECRET");
        Ok(MaskSecret { key, fingerprint: hex::encode(digest(&SHA256, tag.as_ref())) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_displayed_as_it_is_written() {
        for text in ["hmac", "null", "year", "last 4", "fixed ***", "fixed a b", "fixed "] {
            assert_eq!(text.parse::<MaskRule>().map(|rule| rule.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "HMAC", "last", "last 0", "last 65", "last x", "fixed", "hmac 1", "sha256"] {
            assert!(text.parse::<MaskRule>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_rule_takes_no_type_of_which_it_would_show_all() {
        assert!(MaskRule::Last(4).takes(ColumnType::Text) && MaskRule::Last(4).takes(ColumnType::Int8));
        assert!(!MaskRule::Last(4).takes(ColumnType::Bool) && !MaskRule::Last(4).takes(ColumnType::Bytea));
        assert!(MaskRule::Year.takes(ColumnType::Date) && !MaskRule::Year.takes(ColumnType::Text));
        assert!("                    ".parse::<MaskSecret>().is_err());
        assert!("aaaaaaaaaaaaaaaaaaaa".parse::<MaskSecret>().is_err());
    }

    #[test]
    fn a_secret_shows_nothing_of_itself() {
        let secret: MaskSecret = "correct horse battery staple".parse().unwrap();
        assert!(!format!("{secret:?}").contains("correct"), "{secret:?}");
        assert_ne!(secret.fingerprint, "correct horse battery stapler".parse::<MaskSecret>().unwrap().fingerprint);
        let why = "too short".parse::<MaskSecret>().unwrap_err();
        assert!(!why.contains("too short"), "{why}");
    }
}
