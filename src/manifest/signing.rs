//! The signature of a manifest: Ed25519 over its digest.

use std::sync::Arc;

use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::manifest::Manifest;

/// The private key that signs manifests.
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

    /// Signs a manifest's digest.
    pub fn sign(&self, manifest: &mut Manifest) {
        let digest = hex::decode(&manifest.digest).unwrap_or_default();
        manifest.signature = Some(hex::encode(self.0.sign(&digest)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_seed_of_32_bytes_is_accepted() {
        // The first vector of RFC 8032, 7.1.
        let key = SigningKey::read("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        assert_eq!(key.public_key(), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        assert!(SigningKey::read("9d61").is_none() && SigningKey::read(&"zz".repeat(32)).is_none());
        assert!(!format!("{key:?}").contains("9d61"));
    }
}
