//! Verifies that a manifest is unchanged: its digest, the members that loaders read, its signature and its name.

use ring::signature::{ED25519, ED25519_PUBLIC_KEY_LEN, UnparsedPublicKey};

use crate::file_name::stem_of;
use crate::{ConsumerId, Manifest, signing};

#[derive(Clone, Debug)]
pub struct PublicKey([u8; ED25519_PUBLIC_KEY_LEN]);

/// The points of small order, without the bit of the sign. Everybody can sign for such a key.
///
/// These are all encodings that exist: the last two are not reduced. See the list of libsodium
/// (`ge25519_has_small_order`).
const SMALL_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

impl std::str::FromStr for PublicKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<PublicKey, &'static str> {
        let bytes = hex::decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
        let PublicKey(key) =
            bytes.map(PublicKey).ok_or("not the 32 bytes of an Ed25519 public key, as 64 hexadecimal digits")?;
        let mut unsigned = key;
        unsigned[ED25519_PUBLIC_KEY_LEN - 1] &= 0x7f;
        if SMALL_ORDER.contains(&&*hex::encode(unsigned)) {
            return Err("a key of small order, for which everybody can sign");
        }
        Ok(PublicKey(key))
    }
}

/// The evidence that a manifest was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("its digest does not match its content")]
    Digest,
    #[error("its entries, schema or meta differ from its export")]
    LoaderMembers,
    #[error("it is the manifest of another name")]
    Name,
    #[error("it has no signature")]
    Unsigned,
    /// The signature is by none of the keys, or over another manifest.
    #[error("its signature is not by this key")]
    Signature,
    #[error("its signature has a form that this version doesn't know")]
    SignatureForm,
}

impl Manifest {
    /// Checks that the manifest is unchanged and belongs under this name. Requires a signature by one of the keys, if
    /// there are any.
    pub fn check(&self, name: &str, keys: &[PublicKey]) -> Result<(), Broken> {
        self.check_content()?;
        if !self.may_have_name(name) {
            return Err(Broken::Name);
        }
        self.check_signature(keys)
    }

    pub fn check_content(&self) -> Result<(), Broken> {
        let urls = self.entries.iter().map(|entry| entry.url.clone()).collect();
        let written = Manifest::new(self.number, self.export.clone(), urls);
        if written.digest != self.digest {
            return Err(Broken::Digest);
        }
        let is_same = (&written.entries, &written.schema, written.meta) == (&self.entries, &self.schema, self.meta);
        if !is_same || self.entries.len() != self.export.files.len() {
            return Err(Broken::LoaderMembers);
        }
        Ok(())
    }

    /// Checks that one of the keys signed the manifest. Checks nothing if there are no keys.
    ///
    /// The signature is over the digest that the manifest states: see [`Manifest::check_content`].
    pub fn check_signature(&self, keys: &[PublicKey]) -> Result<(), Broken> {
        if keys.is_empty() {
            return Ok(());
        }
        let signature = self.signature.as_ref().ok_or(Broken::Unsigned)?;
        let bytes = signing::signed_bytes(self).ok_or(Broken::SignatureForm)?;
        let signature = hex::decode(signature).map_err(|_| Broken::Signature)?;
        let is_by =
            |PublicKey(key): &PublicKey| UnparsedPublicKey::new(&ED25519, key).verify(&bytes, &signature).is_ok();
        if keys.iter().any(is_by) { Ok(()) } else { Err(Broken::Signature) }
    }

    /// Returns true if the manifest may have this name, in any folder.
    fn may_have_name(&self, name: &str) -> bool {
        if Manifest::is_key(name) {
            let consumer: Result<ConsumerId, _> = self.export.consumer.parse();
            return consumer.is_ok_and(|consumer| Manifest::key(&self.export.dataset, &consumer, self.number) == name);
        }
        // A manifest next to its files has the stem that their names have in common.
        let Some(path) = self.export.files.first().and_then(|file| file.path.as_deref()) else { return true };
        let file = path.rsplit('/').next().unwrap_or(path);
        let (stem, ending) = file.split_at(stem_of(file).len());
        let stem = match stem.rsplit_once(".part-") {
            Some((stem, part)) if part.bytes().all(|byte| byte.is_ascii_digit()) => stem,
            _ => stem,
        };
        name.rsplit('/').next() == Some(&*Manifest::name_in_folder(&format!("{stem}{ending}")))
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::*;
    use crate::VERSION;
    use crate::manifest::tests::chained;
    use crate::signing::SigningKey;

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
        assert_eq!(manifest().check(KEY, &[]), Ok(()));
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
                    let found = Manifest::read(other.to_string().as_bytes()).unwrap().check(KEY, &[]);
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
            (&*format!("orders/{NAME}"), Ok(())),
            (KEY, Ok(())),
            ("full_orders-2.manifest.json", Err(Broken::Name)),
            ("orders/search/_manifests/00000000000000000018.json", Err(Broken::Name)),
            ("orders/other/_manifests/00000000000000000017.json", Err(Broken::Name)),
        ] {
            assert_eq!(manifest().check(name, &[]), found, "{name}");
        }
        let mut none = manifest();
        none.entries.pop();
        assert_eq!(none.check(NAME, &[]), Err(Broken::LoaderMembers));
    }

    #[test]
    fn signature_covers_number_and_locations() {
        let signer = |seed: &str| SigningKey::read(&seed.repeat(32)).unwrap();
        let key = |seed: &str| signer(seed).public_key().parse::<PublicKey>().unwrap();
        let mut signed = manifest();
        signer("07").sign(&mut signed);
        let check = |changed: &Manifest| changed.check_content().and_then(|()| changed.check_signature(&[key("07")]));
        assert_eq!((check(&signed), signed.signature_version.as_deref()), (Ok(()), Some("2")));
        // Two keys are given while one replaces the other.
        assert_eq!(signed.check_signature(&[key("08"), key("07")]), Ok(()));
        assert_eq!(signed.check_signature(&[key("08")]), Err(Broken::Signature));
        type Change = fn(&mut Manifest);
        let changes: [(&str, Change); 7] = [
            ("number", |it| it.number = 18),
            ("url", |it| it.entries[0].url = "https://evil.example/full_orders.part-00001.csv.gz".to_owned()),
            ("path", |it| it.export.files[0].path = Some("elsewhere/full_orders.part-00001.csv.gz".to_owned())),
            ("no path", |it| it.export.files[0].path = None),
            ("no form", |it| it.signature_version = None),
            ("locations", |it| it.signed_locations = Some(Vec::new())),
            ("no signature", |it| it.signature = None),
        ];
        for (what, change) in changes {
            let mut changed = signed.clone();
            change(&mut changed);
            assert!(check(&changed).is_err(), "{what}");
            assert_eq!(changed.check_signature(&[]), Ok(()), "{what}");
        }
        // A copy at another location keeps the signed locations.
        let mut copied = signed.clone();
        copied.signed_locations = Some(signed.locations());
        copied.entries[0].url = "file:///inbox/a.csv".to_owned();
        copied.export.files[0].path = Some("a.csv".to_owned());
        copied.copied_exports = Some(2);
        assert_eq!(check(&copied), Ok(()));
        assert_eq!(Manifest::read(copied.text().as_bytes()).unwrap(), copied);
        copied.number = 18;
        assert_eq!(check(&copied), Err(Broken::Signature));
        let later = Manifest { signature_version: Some("3".to_owned()), ..signed };
        assert_eq!(check(&later), Err(Broken::SignatureForm));
    }

    /// A signature of zeros, or nearly so, is valid for such a key with one of a few messages.
    #[test]
    fn keys_of_small_order_are_refused() {
        let mut accepted = 0;
        for point in SMALL_ORDER {
            for sign in [0, 0x80] {
                let mut key = hex::decode(point).unwrap();
                key[31] |= sign;
                assert!(hex::encode(&key).parse::<PublicKey>().is_err(), "{point} {sign}");
                let mut signature = [0; 64];
                signature[0] = 1;
                let unchecked = UnparsedPublicKey::new(&ED25519, key);
                accepted += u32::from((0..=u8::MAX).any(|text| unchecked.verify(&[text], &signature).is_ok()));
            }
        }
        // The cryptography itself accepts the eight points, so the list has no point too few or too many of these.
        assert!(accepted >= 8, "{accepted}");
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        assert!(hex::encode(pair.public_key()).parse::<PublicKey>().is_ok());
    }
}
