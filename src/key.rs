//! An API key: what a client presents, and what it may do with it.
//!
//! A key is `cdcx_<prefix>_<secret>`. The prefix is public, and finds the stored key; the secret is 256 random bits,
//! which only the client has. The service holds a key's text only while it makes or reads the key: it keeps, and
//! compares, the SHA-256 of the whole text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use ring::digest::{Digest, SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;

use crate::job::ConsumerId;

/// The beginning of every key, so that scanners for leaked secrets can find keys.
const MARK: &str = "cdcx_";
const PREFIX_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;

pg_rows::words! {
    /// A right that a key gives.
    Scope, "a scope: export:read, export:write, admin" {
        /// Look at exports, watermarks, consumers and datasets, and fetch files.
        Read = "export:read",
        /// Ask for exports, cancel them, remove their files, set watermarks.
        Write = "export:write",
        /// Everything else, and the other two.
        Admin = "admin",
    }
}

/// The public part of a key, 12 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(String);

impl Prefix {
    /// A prefix that was stored.
    pub fn stored(digits: String) -> Prefix {
        Prefix(digits)
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key as a client presents it: well-formed, but perhaps none that was made. The secret is not kept.
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
    /// It doesn't quote the text.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<PresentedKey, &'static str> {
        const NO_KEY: &str = "not a key";
        let (prefix, secret) = text.strip_prefix(MARK).and_then(|rest| rest.split_once('_')).ok_or(NO_KEY)?;
        let is_hex = |digits: &str| digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        if prefix.len() != 2 * PREFIX_BYTES || secret.len() != 2 * SECRET_BYTES || !is_hex(prefix) || !is_hex(secret) {
            return Err(NO_KEY);
        }
        Ok(PresentedKey { prefix: Prefix(prefix.to_owned()), hash: digest(&SHA256, text.as_bytes()) })
    }
}

/// The text of a key, which a client sends to a service and shows nowhere.
#[derive(Clone)]
pub struct KeyText(String);

impl KeyText {
    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText")
    }
}

impl FromStr for KeyText {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<KeyText, &'static str> {
        text.parse::<PresentedKey>().map(|_| KeyText(text.to_owned()))
    }
}

impl PresentedKey {
    /// A new random key, and the text of it, which exists nowhere else.
    pub fn random() -> (PresentedKey, String) {
        let text = format!("{MARK}{}_{}", random_hex::<PREFIX_BYTES>(), random_hex::<SECRET_BYTES>());
        let key = text.parse().expect("a key is made as it is read");
        (key, text)
    }

    /// The public part.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// The SHA-256 of the key's text, which is stored.
    pub fn hash(&self) -> &[u8] {
        self.hash.as_ref()
    }

    /// Returns true if this is the key that was stored. The time of the comparison doesn't tell where they differ.
    pub fn is(&self, stored: &StoredKey) -> bool {
        self.hash().ct_eq(&stored.hash).into()
    }
}

/// Returns true if a key, or its beginning, is in a text that is no place for one, whatever its case. Such a text is
/// logged nowhere.
pub fn is_in(text: &str) -> bool {
    text.to_ascii_lowercase().contains(MARK)
}

fn random_hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system has random bytes");
    hex::encode(bytes)
}

/// The name that an operator gives a key: 1 to 100 characters, no control characters, no space at the ends. It doesn't
/// begin like a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyName(String);

impl KeyName {
    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyName, String> {
        let is_plain = !text.contains(char::is_control) && text.trim() == text && !text.starts_with(MARK);
        if is_plain && (1..=100).contains(&text.chars().count()) {
            Ok(KeyName(text.to_owned()))
        } else {
            Err(format!(
                "a key's name has 1 to 100 characters, no control characters, no space at its ends, and doesn't begin with {MARK}"
            ))
        }
    }
}

/// The key that an operator selects: by its name, by its prefix with or without `cdcx_`, or by its whole text, which
/// somebody has who found a leaked key. Of the text only the prefix is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySelector(String);

impl KeySelector {
    /// The name or the prefix.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for KeySelector {
    fn from(text: &str) -> KeySelector {
        let prefix = text.strip_prefix(MARK).map(|rest| rest.split('_').next().unwrap_or_default());
        KeySelector(prefix.unwrap_or(text).to_owned())
    }
}

/// The rights of a key, and the consumers that it is for.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The prefix of the key.
    pub prefix: Prefix,
    /// The consumers that the key is for; `None`: all consumers, and ad-hoc exports.
    pub consumers: Option<Vec<ConsumerId>>,
    /// The scopes of the key.
    pub scopes: Vec<Scope>,
}

impl Grant {
    /// Returns true if the key allows what needs this scope.
    pub fn allows(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// Returns true if the key is for this consumer's exports; `None`: for ad-hoc ones.
    pub fn is_for(&self, consumer: Option<&ConsumerId>) -> bool {
        self.consumers.as_ref().is_none_or(|its| consumer.is_some_and(|consumer| its.contains(consumer)))
    }
}

/// A valid key as the database has it.
#[derive(Clone)]
pub struct StoredKey {
    /// The rights of a client with this key.
    pub grant: Arc<Grant>,
    /// The SHA-256 of the key's text.
    pub hash: Vec<u8>,
    /// True if it is a while since the use of the key was last noted.
    pub is_use_due: bool,
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredKey({})", self.grant.prefix)
    }
}

/// A key as operators see it.
#[derive(Clone, Debug)]
pub struct KeyInfo {
    /// The name that the operator gave the key.
    pub name: String,
    /// The rights of a client with this key.
    pub grant: Grant,
    /// When the key was made.
    pub created_at: DateTime<Utc>,
    /// When the key expires; `None`: never.
    pub expires_at: Option<DateTime<Utc>>,
    /// When the key was revoked; `None`: it was not.
    pub revoked_at: Option<DateTime<Utc>>,
    /// About when the key was last used; `None`: never.
    pub last_used_at: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_show_in_debug() {
        let (key, text) = PresentedKey::random();
        let shown = format!("{key:?}");
        assert_eq!(shown, format!("PresentedKey({})", &text[5..17]));
    }

    #[test]
    fn a_bound_key_is_for_its_consumers_alone() {
        let (a, b) = ("a".parse().unwrap(), "A".parse().unwrap());
        let bound = |consumers| Grant { prefix: Prefix(String::new()), consumers, scopes: Vec::new() };
        let only_a = bound(Some(vec!["a".parse().unwrap()]));
        assert!(only_a.is_for(Some(&a)) && !only_a.is_for(Some(&b)) && !only_a.is_for(None));
        assert!(bound(None).is_for(Some(&a)) && bound(None).is_for(None));
        assert!(!bound(Some(Vec::new())).is_for(Some(&a)), "of an empty list nobody is");
    }

    #[test]
    fn a_key_is_called_by_its_name_or_its_prefix() {
        let (key, text) = PresentedKey::random();
        let prefix = key.prefix().as_str();
        for called in [prefix, &format!("cdcx_{prefix}"), &text] {
            assert_eq!(KeySelector::from(called).as_str(), prefix);
        }
        assert_eq!(KeySelector::from("search 2").as_str(), "search 2");
    }
}
