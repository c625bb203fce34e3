//! A client's name for a request.

use std::str::FromStr;

/// A client's name for a request, 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

/// A text that is no idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not 1 to 255 visible ASCII characters")]
pub struct BadIdempotencyKey;

impl IdempotencyKey {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdempotencyKey {
    type Err = BadIdempotencyKey;

    fn from_str(text: &str) -> Result<IdempotencyKey, BadIdempotencyKey> {
        let good = (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if good { Ok(IdempotencyKey(text.to_owned())) } else { Err(BadIdempotencyKey) }
    }
}
