//! Verifies that a manifest is unchanged: its digest, the members that loaders read, its signature and its name.

use ring::signature::{ED25519, ED25519_PUBLIC_KEY_LEN, UnparsedPublicKey};

use crate::file::name::stem_of;
use crate::job::ConsumerId;
use crate::manifest::{self, Manifest};

/// An Ed25519 public key.
#[derive(Clone, Debug)]
pub struct PublicKey([u8; ED25519_PUBLIC_KEY_LEN]);

impl std::str::FromStr for PublicKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<PublicKey, &'static str> {
        let bytes = hex::decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(PublicKey).ok_or("not the 32 bytes of an Ed25519 public key, as 64 hexadecimal digits")
    }
}

/// The evidence that a manifest was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The digest does not match the export.
    #[error("its digest does not match its content")]
    Digest,
    /// The members that loaders read differ from the export.
    #[error("its entries, schema or meta differ from its export")]
    LoaderMembers,
    /// The manifest is stored under the name of another manifest.
    #[error("it is the manifest of another name")]
    Name,
    /// The manifest has no signature.
    #[error("it has no signature")]
    Unsigned,
    /// The signature is not valid for this key and digest.
    #[error("its signature is not by this key")]
    Signature,
}

impl Manifest {
    /// Checks that the manifest is unchanged and belongs under this name. Checks the signature only if `key` is given.
    ///
    /// # Errors
    /// The first evidence of a change.
    pub fn check(&self, name: &str, key: Option<&PublicKey>) -> Result<(), Broken> {
        let urls = self.entries.iter().map(|entry| entry.url.clone()).collect();
        let written = Manifest::new(self.number, self.export.clone(), urls);
        if written.digest != self.digest {
            return Err(Broken::Digest);
        }
        let is_same = (&written.entries, &written.schema, written.meta) == (&self.entries, &self.schema, self.meta);
        if !is_same || self.entries.len() != self.export.files.len() {
            return Err(Broken::LoaderMembers);
        }
        if !self.may_have_name(name) {
            return Err(Broken::Name);
        }
        let Some(PublicKey(key)) = key else { return Ok(()) };
        let signature = hex::decode(self.signature.as_ref().ok_or(Broken::Unsigned)?).map_err(|_| Broken::Signature)?;
        let digest = hex::decode(&self.digest).map_err(|_| Broken::Signature)?;
        UnparsedPublicKey::new(&ED25519, key).verify(&digest, &signature).map_err(|_| Broken::Signature)
    }

    /// Returns true if a manifest of this export and number may have this name.
    fn may_have_name(&self, name: &str) -> bool {
        if manifest::is_key(name) {
            let consumer: Result<ConsumerId, _> = self.export.consumer.parse();
            return consumer.is_ok_and(|consumer| manifest::key(&self.export.dataset, &consumer, self.number) == name);
        }
        // A manifest next to its files has the stem that their names have in common.
        let Some(path) = self.export.files.first().and_then(|file| file.path.as_deref()) else { return true };
        let file = path.rsplit('/').next().unwrap_or(path);
        let (stem, ending) = file.split_at(stem_of(file).len());
        let stem = match stem.rsplit_once(".part-") {
            Some((stem, part)) if part.bytes().all(|byte| byte.is_ascii_digit()) => stem,
            _ => stem,
        };
        manifest::name_in_folder(&format!("{stem}{ending}")) == name
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::*;
    use crate::manifest::VERSION;
    use crate::manifest::tests::chained;

    fn manifest() -> Manifest {
        let mut export = chained();
        export.files[0].path = Some("full_orders.part-00001.csv.gz".to_owned());
        Manifest::new(17, export, vec!["file:///srv/full_orders.part-00001.csv.gz".to_owned()])
    }

    const NAME: &str = "full_orders.manifest.json";
    const KEY: &str = "orders/search/_manifests/00000000000000000017.json";

    /// The members for the location of the files and for the author are the only ones that may change.
    #[test]
    fn change_of_any_member_is_detected() {
        let whole = serde_json::to_value(manifest()).unwrap();
        assert_eq!(manifest().check(KEY, None), Ok(()));
        let (mut open, mut changed) = (vec![(whole.clone(), String::new())], 0);
        while let Some((value, at)) = open.pop() {
            match value {
                serde_json::Value::Object(members) => {
                    open.extend(members.into_iter().map(|(name, member)| (member, format!("{at}/{name}"))));
                }
                serde_json::Value::Array(members) => {
                    open.extend(members.into_iter().enumerate().map(|(n, member)| (member, format!("{at}/{n}"))));
                }
                value if at == "/export/version" => assert_eq!(value, VERSION),
                value => {
                    let mut other = whole.clone();
                    *other.pointer_mut(&at).unwrap() = match value {
                        serde_json::Value::Number(_) => 7.into(),
                        serde_json::Value::Bool(is) => (!is).into(),
                        _ => "7".into(),
                    };
                    let found = Manifest::read(other.to_string().as_bytes()).unwrap().check(KEY, None);
                    let is_free = at.ends_with("/url") || at.ends_with("/path") || at.starts_with("/author");
                    assert_eq!(found.is_ok(), is_free, "{at}");
                    changed += 1;
                }
            }
        }
        assert_eq!(changed, 34);
    }

    #[test]
    fn manifest_under_another_name_is_rejected() {
        for (name, found) in [
            (NAME, Ok(())),
            (KEY, Ok(())),
            ("full_orders-2.manifest.json", Err(Broken::Name)),
            ("orders/search/_manifests/00000000000000000018.json", Err(Broken::Name)),
            ("orders/other/_manifests/00000000000000000017.json", Err(Broken::Name)),
        ] {
            assert_eq!(manifest().check(name, None), found, "{name}");
        }
        let mut none = manifest();
        none.entries.pop();
        assert_eq!(none.check(NAME, None), Err(Broken::LoaderMembers));
    }

    #[test]
    fn signature_covers_the_bytes_of_the_digest() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let key: PublicKey = hex::encode(pair.public_key()).parse().unwrap();
        let mut signed = manifest();
        assert_eq!(signed.check(NAME, Some(&key)), Err(Broken::Unsigned));
        let sign = |text: &str| hex::encode(pair.sign(&hex::decode(text).unwrap()));
        signed.signature = Some(sign(&signed.digest));
        assert_eq!(signed.check(NAME, Some(&key)), Ok(()));
        signed.signature = Some(sign(&"00".repeat(32)));
        assert_eq!(signed.check(NAME, Some(&key)), Err(Broken::Signature));
        assert_eq!(signed.check(NAME, None), Ok(()));
        for text in ["", "aaaa", "not hexadecimal", &hex::encode([0; 33])] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
    }
}
