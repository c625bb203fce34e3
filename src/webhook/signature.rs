//! Signatures as Standard Webhooks has them (<https://www.standardwebhooks.com>): the receiver knows who posted an event, and when.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// What a secret begins with.
const PREFIX: &str = "whsec_";
/// How many bytes a secret may have.
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A receiver's secrets: one, or two while the receiver changes from the one to the other.
#[derive(Clone)]
pub struct Secrets(Vec<hmac::Key>);

/// Why a text has no secrets. It quotes nothing of them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`whsec_` and 24 to 64 bytes as base64 are expected, or two such secrets with a space between them: {0}")]
pub struct NoSecrets(String);

impl FromStr for Secrets {
    type Err = NoSecrets;

    fn from_str(text: &str) -> Result<Secrets, NoSecrets> {
        let secrets: Vec<_> = text.split_ascii_whitespace().map(key).collect::<Result<_, _>>()?;
        match secrets.len() {
            1 | 2 => Ok(Secrets(secrets)),
            number => Err(NoSecrets(format!("there are {number}"))),
        }
    }
}

fn key(text: &str) -> Result<hmac::Key, NoSecrets> {
    let coded = text.strip_prefix(PREFIX).ok_or_else(|| NoSecrets(format!("one doesn't begin with `{PREFIX}`")))?;
    let bytes = STANDARD.decode(coded).map_err(|_| NoSecrets("one is no base64".to_owned()))?;
    if !BYTES.contains(&bytes.len()) {
        return Err(NoSecrets(format!("one has {} bytes", bytes.len())));
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

impl Secrets {
    /// The value of `webhook-signature`: one for each secret. `timestamp` is in seconds since 1970.
    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let text = format!("{id}.{timestamp}.{body}");
        let sign = |key| format!("v1,{}", STANDARD.encode(hmac::sign(key, text.as_bytes())));
        self.0.iter().map(sign).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_a_form() {
        let secret = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![7; bytes]));
        for good in [secret(24), secret(64), format!("{} {}", secret(32), secret(33)), format!("{}\n", secret(24))] {
            assert!(good.parse::<Secrets>().is_ok(), "{good}");
        }
        let three = [secret(24), secret(24), secret(24)].join(" ");
        for (bad, why) in [
            ("", "there are 0"),
            ("whsec_", "one has 0 bytes"),
            ("whsec_!", "one is no base64"),
            (&secret(23), "one has 23 bytes"),
            (&secret(65), "one has 65 bytes"),
            (&secret(32)[6..], "one doesn't begin with `whsec_`"),
            (&three, "there are 3"),
        ] {
            assert_eq!(bad.parse::<Secrets>().unwrap_err(), NoSecrets(why.to_owned()), "{bad}");
        }
        assert_eq!(format!("{:?}", secret(24).parse::<Secrets>().unwrap()), "Secrets");
    }
}
