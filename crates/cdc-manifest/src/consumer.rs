//! The id of a consumer.

use std::fmt;
use std::str::FromStr;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a consumer id has 1 to 128 characters of A-Z a-z 0-9 . _ : @ - and begins with a letter or digit")]
pub struct BadConsumerId;

/// The id of a consumer: 1 to 128 characters of `A-Z a-z 0-9 . _ : @ -`, beginning with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConsumerId(String);

impl ConsumerId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ConsumerId {
    type Err = BadConsumerId;

    fn from_str(text: &str) -> Result<ConsumerId, BadConsumerId> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:@-".contains(c);
        let begins_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if begins_well && text.len() <= 128 && text.chars().all(allowed) {
            Ok(ConsumerId(text.to_owned()))
        } else {
            Err(BadConsumerId)
        }
    }
}

impl fmt::Display for ConsumerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
