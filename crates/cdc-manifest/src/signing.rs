//! The signature of a manifest: Ed25519 over its digest, its number and the locations of its files.

use std::sync::Arc;

use ring::signature::{Ed25519KeyPair, KeyPair};

use serde::Serialize;

use crate::manifest::{Manifest, SignedLocation};

pub(crate) const VERSION: &str = "2";

/// The signed form. The bytes are its canonical JSON (RFC 8785).
#[derive(Serialize)]
struct Signed<'m> {
    version: &'static str,
    digest: &'m str,
    /// A text, as all numbers in a manifest's `export`.
    number: String,
    locations: &'m [SignedLocation],
}

/// Returns the bytes that are signed. Returns `None` if the manifest names another form.
pub(super) fn signed_bytes(manifest: &Manifest) -> Option<Vec<u8>> {
    if manifest.signature_version.as_deref() != Some(VERSION) {
        return None;
    }
    let Manifest { digest, number, signed_locations, .. } = manifest;
    let locations = signed_locations.clone().unwrap_or_else(|| manifest.locations());
    let signed = Signed { version: VERSION, digest, number: number.to_string(), locations: &locations };
    Some(serde_json_canonicalizer::to_vec(&signed).expect("texts and lists have a canonical form"))
}

#[derive(Clone, Debug)]
pub struct SigningKey(Arc<Ed25519KeyPair>);

impl SigningKey {
    /// Reads the key from its seed: 64 hexadecimal digits, as `openssl rand -hex 32` prints them. Returns `None` if the
    /// text is not a seed.
    pub fn read(seed: &str) -> Option<SigningKey> {
        let seed = hex::decode(seed).ok()?;
        Some(SigningKey(Arc::new(Ed25519KeyPair::from_seed_unchecked(&seed).ok()?)))
    }

    /// Returns the public key that verifies the signatures, in hexadecimal.
    pub fn public_key(&self) -> String {
        hex::encode(self.0.public_key())
    }

    pub fn sign(&self, manifest: &mut Manifest) {
        manifest.signature_version = Some(VERSION.to_owned());
        let bytes = signed_bytes(manifest).expect("this version's form is known");
        manifest.signature = Some(hex::encode(self.0.sign(&bytes)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::chained;

    #[test]
    fn only_a_seed_of_32_bytes_is_accepted() {
        // The first vector of RFC 8032, 7.1.
        let key = SigningKey::read("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        assert_eq!(key.public_key(), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        assert!(SigningKey::read("9d61").is_none() && SigningKey::read(&"zz".repeat(32)).is_none());
        assert!(!format!("{key:?}").contains("9d61"));
    }

    /// Every later version, and every other program, must build the bytes that an earlier version signed.
    #[test]
    fn signed_form_is_stable_across_versions() {
        let mut manifest = Manifest::new(17, chained(), vec!["s3://files/full_orders.csv".to_owned()]);
        manifest.signature_version = Some(VERSION.to_owned());
        let expected = format!(
            r#"{{"digest":"{}","locations":[{{"path":"full_orders.csv","url":"s3://files/full_orders.csv"}}],"number":"17","version":"2"}}"#,
            manifest.digest
        );
        assert_eq!(String::from_utf8(signed_bytes(&manifest).unwrap()).unwrap(), expected);
    }
}
