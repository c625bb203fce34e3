//! Signatures of posted events, as Standard Webhooks specifies them (<https://www.standardwebhooks.com>).
//!
//! With its secret, a receiver verifies which service posted an event, and when.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

const PREFIX: &str = "whsec_";
/// Allowed lengths of a secret, in bytes.
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The secrets of a receiver: one, or two during a rotation.
#[derive(Clone)]
pub(super) struct SigningSecrets(Vec<hmac::Key>);

impl FromStr for SigningSecrets {
    /// The error doesn't quote the secrets.
    type Err = String;

    fn from_str(text: &str) -> Result<SigningSecrets, String> {
        let secrets: Result<Vec<_>, String> = text.split_ascii_whitespace().map(key).collect();
        let why = match secrets {
            Ok(secrets) if (1..=2).contains(&secrets.len()) => return Ok(SigningSecrets(secrets)),
            Ok(secrets) => format!("there are {}", secrets.len()),
            Err(why) => why,
        };
        let expected =
            "`whsec_` and 24 to 64 bytes as base64 are expected, or two such secrets with a space between them";
        Err(format!("{expected}: {why}"))
    }
}

fn key(text: &str) -> Result<hmac::Key, String> {
    let coded = text.strip_prefix(PREFIX).ok_or_else(|| format!("one doesn't begin with `{PREFIX}`"))?;
    let bytes = STANDARD.decode(coded).map_err(|_| "one is no base64".to_owned())?;
    if !BYTES.contains(&bytes.len()) {
        return Err(format!("one has {} bytes", bytes.len()));
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

impl fmt::Debug for SigningSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

impl SigningSecrets {
    /// Returns the value of `webhook-signature`: one signature for each secret. `timestamp` is in seconds since 1970.
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
    fn only_well_formed_secrets_are_accepted() {
        let secret = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![7; bytes]));
        for good in [secret(24), secret(64), format!("{} {}", secret(32), secret(33)), format!("{}\n", secret(24))] {
            assert!(good.parse::<SigningSecrets>().is_ok(), "{good}");
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
            assert!(bad.parse::<SigningSecrets>().unwrap_err().ends_with(&format!(": {why}")), "{bad}");
        }
        assert_eq!(format!("{:?}", secret(24).parse::<SigningSecrets>().unwrap()), "Secrets");
    }
}
