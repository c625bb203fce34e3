//! API keys: their text, their stored form and the rights that they grant.
//!
//! The text of a key is `cdcx_<prefix>_<secret>`. The prefix is public and identifies the stored key. The secret has
//! 256 random bits, and only the client stores it. The service has the text in memory only while it creates or parses a
//! key. It stores and compares the SHA-256 of the text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use ring::digest::{Digest, SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;

use crate::job::Bounds;

/// The scheme: the first characters of every key. Scanners for leaked secrets can search for it.
pub const SCHEME: &str = "cdcx_";
const PREFIX_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;

pg_rows::words! {
    /// A right that a key grants.
    Scope, "a scope:" {
        /// Read exports, watermarks, consumers and datasets, and download files.
        Read = "export:read",
        /// Request and cancel exports, remove their files, delete watermarks.
        Write = "export:write",
        /// Everything else, and the rights of the other two scopes.
        Admin = "admin",
    }
}

/// The public part of a key, 12 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(String);

impl Prefix {
    pub fn stored(digits: String) -> Prefix {
        Prefix(digits)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A well-formed key that a client presents. It may not exist in the database. Does not contain the secret.
#[derive(Clone)]
pub struct PresentedKey {
    prefix: Prefix,
    hash: Digest,
}

impl fmt::Debug for PresentedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PresentedKey({})", self.prefix)
    }
}

impl FromStr for PresentedKey {
    /// The error does not quote the text, which may contain a secret.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<PresentedKey, &'static str> {
        const NO_KEY: &str = "not a key";
        let (prefix, secret) = text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('_')).ok_or(NO_KEY)?;
        let is_hex = |digits: &str| digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        if prefix.len() != 2 * PREFIX_BYTES || secret.len() != 2 * SECRET_BYTES || !is_hex(prefix) || !is_hex(secret) {
            return Err(NO_KEY);
        }
        Ok(PresentedKey { prefix: Prefix(prefix.to_owned()), hash: digest(&SHA256, text.as_bytes()) })
    }
}

impl PresentedKey {
    /// Creates a random key. Returns the key and its text, which is stored nowhere.
    pub fn random() -> (PresentedKey, String) {
        let text = format!("{SCHEME}{}_{}", random_hex::<PREFIX_BYTES>(), random_hex::<SECRET_BYTES>());
        let key = text.parse().expect("a generated key is well-formed");
        (key, text)
    }

    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// Returns the SHA-256 of the key's text.
    pub fn hash(&self) -> &[u8] {
        self.hash.as_ref()
    }

    /// Returns true if this is the stored key. Compares in constant time, so that the duration reveals nothing.
    pub fn is(&self, stored: &StoredKey) -> bool {
        self.hash().ct_eq(&stored.hash).into()
    }
}

/// Returns true if a text contains a key or its beginning, in upper or lower case. The caller must not log such a text.
pub fn is_in(text: &str) -> bool {
    text.to_ascii_lowercase().contains(SCHEME)
}

fn random_hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system has random bytes");
    hex::encode(bytes)
}

/// The name that an operator gives to a key: 1 to 100 characters, no control characters, no space at the ends. A name
/// does not begin with `cdcx_`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyName(String);

impl KeyName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyName, String> {
        let is_plain = !text.contains(char::is_control) && text.trim() == text && !text.starts_with(SCHEME);
        if is_plain && (1..=100).contains(&text.chars().count()) {
            Ok(KeyName(text.to_owned()))
        } else {
            Err(format!(
                "a key's name has 1 to 100 characters, no control characters, no space at its ends, and doesn't begin with {SCHEME}"
            ))
        }
    }
}

/// Selects a key by its name, by its prefix with or without `cdcx_`, or by its whole text. An operator may have the
/// whole text if the key leaked. Only the prefix of the text is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySelector(String);

impl KeySelector {
    /// Returns the name or the prefix.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for KeySelector {
    fn from(text: &str) -> KeySelector {
        let prefix = text.strip_prefix(SCHEME).map(|rest| rest.split('_').next().unwrap_or_default());
        KeySelector(prefix.unwrap_or(text).to_owned())
    }
}

/// The rights of a key, and the exports that they apply to.
#[derive(Clone, Debug)]
pub struct Grant {
    pub prefix: Prefix,
    pub bounds: Bounds,
    pub scopes: Vec<Scope>,
}

impl Grant {
    /// Returns true if the key has this scope. `admin` includes every other scope.
    pub fn allows(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

/// A valid key in its stored form.
#[derive(Clone)]
pub struct StoredKey {
    pub grant: Arc<Grant>,
    /// The SHA-256 of the key's text.
    pub hash: Vec<u8>,
    /// True if the recorded time of the last use is so old that it must be updated.
    pub is_use_due: bool,
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredKey({})", self.grant.prefix)
    }
}

/// The description of a key for operators.
#[derive(Clone, Debug)]
pub struct KeyInfo {
    pub name: String,
    pub grant: Grant,
    pub created_at: DateTime<Utc>,
    /// `None` if it never expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// `None` if it is not revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// The approximate time of the last use. `None` if the key was never used.
    pub last_used_at: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_print_the_secret() {
        let (key, text) = PresentedKey::random();
        let shown = format!("{key:?}");
        assert_eq!(shown, format!("PresentedKey({})", &text[5..17]));
    }

    #[test]
    fn key_is_selected_by_name_prefix_or_text() {
        let (key, text) = PresentedKey::random();
        let prefix = key.prefix().as_str();
        for called in [prefix, &format!("cdcx_{prefix}"), &text] {
            assert_eq!(KeySelector::from(called).as_str(), prefix);
        }
        assert_eq!(KeySelector::from("search 2").as_str(), "search 2");
    }
}
