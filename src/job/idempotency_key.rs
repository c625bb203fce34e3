//! The idempotency key of a request.

use std::str::FromStr;

/// An idempotency key: the client's id of a request, 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdempotencyKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<IdempotencyKey, &'static str> {
        let good = (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if good { Ok(IdempotencyKey(text.to_owned())) } else { Err("not 1 to 255 visible ASCII characters") }
    }
}
