//! The manifest of a batch: the digests of its exports' manifests, its name at a destination, and its signature.
//!
//! The service writes it once, after the manifests of all exports of the batch, and never replaces it. So a reader that
//! sees it has all of them. A batch of which a file was lost has none.

use serde::{Deserialize, Serialize};

use crate::manifest::seal::{Broken, PublicKey, is_signed_by};
use crate::manifest::signing::SigningKey;
use crate::manifest::{ENDING, InvalidManifest, ManifestSource, canonical_digest, list};

/// The version of the form of [`BatchContent`], over which the digest is computed.
pub const VERSION: &str = "1";

/// The version of the form that is signed.
const SIGNATURE_VERSION: &str = "1";

/// The name of the folder with the manifests of batches. No dataset has this name, which begins with `_`.
pub const FOLDER: &str = "_batches";

/// The manifest of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchManifest {
    /// The batch.
    pub batch: BatchContent,
    /// The SHA-256 of `batch` in its canonical form (RFC 8785), in hexadecimal.
    pub digest: String,
    /// The Ed25519 signature, in hexadecimal. `None` if the service has no signing key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The version of the form that is signed. `None` if there is no signature.
    #[serde(default, rename = "signatureVersion", skip_serializing_if = "Option::is_none")]
    pub signature_version: Option<String>,
}

/// The content of a batch's manifest. All numbers are strings, as in the manifest of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchContent {
    /// [`VERSION`].
    pub version: String,
    /// The batch's id.
    pub id: String,
    /// The database that the rows come from.
    pub source: ManifestSource,
    /// The consumer's id.
    pub consumer: String,
    /// The exports with files, in the order of their datasets' names.
    #[serde(deserialize_with = "list::read")]
    pub exports: Vec<BatchedExport>,
    /// The datasets of which nothing was to be exported.
    #[serde(deserialize_with = "list::read")]
    pub skipped: Vec<String>,
}

/// An export of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchedExport {
    /// The dataset's name.
    pub dataset: String,
    /// The export's id.
    pub job: String,
    /// The number of the export in its lane.
    pub number: String,
    /// The digest of the export's manifest.
    pub digest: String,
}

/// Returns the name of a batch's manifest in the folder of its consumer's batches.
pub fn file_name(id: &str) -> String {
    format!("{id}{ENDING}")
}

/// Returns the path of a batch's manifest below the destination, which is its key in a bucket.
pub fn path(consumer: &str, id: &str) -> String {
    format!("{FOLDER}/{consumer}/{}", file_name(id))
}

/// Returns true if a path below a destination is that of a batch's manifest.
pub fn is_path(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    matches!(*parts, [FOLDER, _, name] if !name.starts_with('.') && name.ends_with(ENDING))
}

/// The signed form. The bytes are its canonical JSON (RFC 8785). Its members differ from those of an export's manifest,
/// so the signature of one can't be that of the other.
#[derive(Serialize)]
struct SignedBatch<'m> {
    batch: &'m str,
    version: &'static str,
}

impl BatchManifest {
    /// Builds the manifest of a batch, and signs it if there is a key.
    pub fn new(batch: BatchContent, key: Option<&SigningKey>) -> BatchManifest {
        let digest = batch.digest();
        let mut manifest = BatchManifest { batch, digest, signature: None, signature_version: None };
        if let Some(key) = key {
            manifest.signature = Some(key.sign_bytes(&manifest.signed_bytes()));
            manifest.signature_version = Some(SIGNATURE_VERSION.to_owned());
        }
        manifest
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let signed = SignedBatch { batch: &self.digest, version: SIGNATURE_VERSION };
        serde_json_canonicalizer::to_vec(&signed).expect("texts have a canonical form")
    }

    /// Parses a manifest. Does not verify its digest: see [`BatchManifest::check`].
    ///
    /// # Errors
    /// If the text is not the manifest of a batch, of this version.
    pub fn read(text: &[u8]) -> Result<BatchManifest, InvalidManifest> {
        let manifest: BatchManifest = serde_json::from_slice(text)?;
        if manifest.batch.version == VERSION {
            Ok(manifest)
        } else {
            Err(InvalidManifest::Version(manifest.batch.version))
        }
    }

    /// Returns the JSON text of the manifest.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("texts and lists are JSON")
    }

    /// Checks that the manifest is unchanged and belongs at this path. Requires a signature by one of the keys, if
    /// there are any.
    ///
    /// # Errors
    /// The first evidence of a change.
    pub fn check(&self, at: &str, keys: &[PublicKey]) -> Result<(), Broken> {
        if self.batch.digest() != self.digest {
            return Err(Broken::Digest);
        }
        if path(&self.batch.consumer, &self.batch.id) != at {
            return Err(Broken::Name);
        }
        if keys.is_empty() {
            return Ok(());
        }
        let signature = self.signature.as_ref().ok_or(Broken::Unsigned)?;
        if self.signature_version.as_deref() != Some(SIGNATURE_VERSION) {
            return Err(Broken::SignatureForm);
        }
        if is_signed_by(keys, &self.signed_bytes(), signature) { Ok(()) } else { Err(Broken::Signature) }
    }
}

impl BatchContent {
    fn digest(&self) -> String {
        canonical_digest(self)
    }
}

#[cfg(test)]
mod tests {
    use ring::digest;

    use super::*;
    use crate::manifest;

    const ID: &str = "019a0000-0000-7000-8000-000000000001";

    fn content() -> BatchContent {
        let export = |dataset: &str, number: &str| BatchedExport {
            dataset: dataset.to_owned(),
            job: ID.to_owned(),
            number: number.to_owned(),
            digest: "ab".repeat(32),
        };
        BatchContent {
            version: VERSION.to_owned(),
            id: ID.to_owned(),
            source: ManifestSource { cluster: "00000000000000ff".to_owned(), database: "16384".to_owned() },
            consumer: "a:b".to_owned(),
            exports: vec![export("orders", "17"), export("users", "3")],
            skipped: vec!["prices".to_owned()],
        }
    }

    /// Every later version, and every other program, must compute the digest and the bytes that an earlier version
    /// signed.
    #[test]
    fn form_digest_and_signed_bytes_are_stable_across_versions() {
        let manifest = BatchManifest::new(content(), None);
        let digest_of_export = "ab".repeat(32);
        let canonical = format!(
            r#"{{"consumer":"a:b","exports":[{{"dataset":"orders","digest":"{digest_of_export}","job":"{ID}","number":"17"}},{{"dataset":"users","digest":"{digest_of_export}","job":"{ID}","number":"3"}}],"id":"{ID}","skipped":["prices"],"source":{{"cluster":"00000000000000ff","database":"16384"}},"version":"1"}}"#
        );
        assert_eq!(manifest.digest, hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes())));
        let signed = format!(r#"{{"batch":"{}","version":"1"}}"#, manifest.digest);
        assert_eq!(String::from_utf8(manifest.signed_bytes()).unwrap(), signed);
        assert_eq!(BatchManifest::read(manifest.text().as_bytes()).unwrap(), manifest);
        for (known, and) in [("\"id\":", "\"evil\":1,\"id\":"), ("\"job\":", "\"evil\":1,\"job\":")] {
            assert!(BatchManifest::read(manifest.text().replace(known, and).as_bytes()).is_err(), "{and}");
        }
        let later = BatchManifest::new(BatchContent { version: "2".to_owned(), ..content() }, None);
        assert!(
            matches!(BatchManifest::read(later.text().as_bytes()), Err(InvalidManifest::Version(two)) if two == "2")
        );
    }

    #[test]
    fn each_change_is_detected() {
        let signer = |seed: &str| SigningKey::read(&seed.repeat(32)).unwrap();
        let key = |seed: &str| signer(seed).public_key().parse::<PublicKey>().unwrap();
        let signed = BatchManifest::new(content(), Some(&signer("07")));
        let at = format!("_batches/a:b/{ID}.manifest.json");
        assert_eq!((signed.check(&at, &[key("08"), key("07")]), signed.check(&at, &[])), (Ok(()), Ok(())));
        assert_eq!(signed.check(&at, &[key("08")]), Err(Broken::Signature));
        assert_eq!(signed.check(&at.replace("a:b", "other"), &[]), Err(Broken::Name));
        let unsigned = BatchManifest::new(content(), None);
        assert_eq!((unsigned.check(&at, &[]), unsigned.check(&at, &[key("07")])), (Ok(()), Err(Broken::Unsigned)));
        let mut fewer = signed.clone();
        fewer.batch.exports.pop();
        assert_eq!(fewer.check(&at, &[]), Err(Broken::Digest));
        fewer.digest = fewer.batch.digest();
        assert_eq!((fewer.check(&at, &[]), fewer.check(&at, &[key("07")])), (Ok(()), Err(Broken::Signature)));
        let later = BatchManifest { signature_version: Some("2".to_owned()), ..signed };
        assert_eq!(later.check(&at, &[key("07")]), Err(Broken::SignatureForm));
    }

    #[test]
    fn paths_of_batches_are_no_others() {
        let path = path("a:b", ID);
        assert_eq!(path, format!("_batches/a:b/{ID}.manifest.json"));
        assert!(is_path(&path) && !manifest::is_key(&path));
        for other in
            ["_batches/a.manifest.json", "_batches/a/.x.manifest.json", "_batches/a/x.json", "x/a/b.manifest.json"]
        {
            assert!(!is_path(other), "{other}");
        }
        assert!(!crate::dataset::name::is_name(FOLDER), "no dataset has files at this place");
    }
}
