//! The JSON form of a manifest, and its names in a folder and in a bucket.

use std::fmt;

use ring::digest;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::consumer::ConsumerId;
use crate::file_name::stem_of;
use crate::list;
use pg_rows::meta::MetaColumn;

/// The version of the form of [`Chained`], over which the digest is computed.
pub const VERSION: &str = "1";

/// The longest manifest that is read, in bytes. The manifest of an export with the most files, the longest names and
/// the longest keys has half as many.
pub const MAX_BYTES: u64 = 32 << 20;

/// The suffix of a manifest's name in a folder.
const ENDING: &str = ".manifest.json";
/// The name of the folder with a lane's manifests in a bucket. It is next to the lane's files.
const FOLDER: &str = "_manifests";

/// A manifest.
///
/// The fields before `number` have the form that Redshift's `COPY … MANIFEST` reads and its `UNLOAD … MANIFEST VERBOSE`
/// writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The files, in the order of their parts.
    #[serde(deserialize_with = "list::read")]
    pub entries: Vec<Entry>,
    pub schema: Schema,
    /// The size and the number of rows of all files together.
    pub meta: Meta,
    pub author: Author,
    /// The number of the export in its lane, from 1. A copied manifest may have another number.
    pub number: u64,
    /// The export, with the digest of the previous export.
    pub export: Chained,
    /// The SHA-256 of `export` in its canonical form (RFC 8785) without the `path` of its files, in hexadecimal.
    pub digest: String,
    /// The Ed25519 signature, in hexadecimal. `None` if the service has no signing key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The version of the form that is signed: "2". `None` if the manifest has no signature.
    #[serde(default, rename = "signatureVersion", skip_serializing_if = "Option::is_none")]
    pub signature_version: Option<String>,
    /// The locations that are signed. `None` if they are those of the manifest. A copy made by `pull` has other ones.
    #[serde(
        default,
        rename = "signedLocations",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "list::read_optional"
    )]
    pub signed_locations: Option<Vec<SignedLocation>>,
    /// The number of the job's exports that `pull` copies, if it copies those of some datasets alone. A reader counts
    /// these in place of [`ManifestDatasets::datasets`].
    #[serde(default, rename = "copiedExports", skip_serializing_if = "Option::is_none")]
    pub copied_exports: Option<u64>,
}

/// The location of a file: as loaders read it, and relative to the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedLocation {
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// A file, in the form that loaders read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub url: String,
    /// True if a loader must fail when the file is missing.
    pub mandatory: bool,
    pub meta: Meta,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub content_length: u64,
    pub record_count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// The columns, in the order of the files.
    #[serde(deserialize_with = "list::read")]
    pub elements: Vec<Element>,
}

/// A column, in the form that loaders read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Element {
    pub name: String,
    #[serde(rename = "type")]
    pub element_type: ElementType,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElementType {
    /// The type's name as Postgres writes it, without length and precision.
    pub base: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    pub name: String,
    pub version: String,
}

/// An export as a link in the chain of its lane.
///
/// All numbers are strings, so that every JSON reader computes the same canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Chained {
    pub version: String,
    pub job: ManifestJob,
    pub source: ManifestSource,
    pub consumer: String,
    pub dataset: String,
    /// The table, with its schema. `None` if the manifest does not say it.
    pub table: Option<String>,
    #[serde(rename = "type")]
    pub export_type: String,
    #[serde(deserialize_with = "list::read")]
    pub key: Vec<String>,
    /// The columns of the files, in order.
    #[serde(deserialize_with = "list::read")]
    pub columns: Vec<ManifestColumn>,
    pub format: String,
    pub compression: String,
    /// The snapshot from which the rows were read, as Postgres writes it. `None` if the dataset uses timestamps alone.
    pub snapshot: Option<String>,
    /// The guard's verdict: the reason why the export could not simply continue from the previous one.
    pub continuity: Option<String>,
    pub watermark_from: Option<String>,
    pub watermark_to: Option<String>,
    pub rows: String,
    /// The files, in the order of their parts.
    #[serde(deserialize_with = "list::read")]
    pub files: Vec<ManifestFile>,
    /// The digest of the previous export of the lane. `None` if this is the lane's first export with a digest.
    pub previous: Option<String>,
    /// The place of the export in its lane, which grows along the lane and may have gaps. Rows have it in `_order`.
    /// `None` if the manifest does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
}

/// The job of an export, in a form that goes by the job's request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ManifestJob {
    /// The id of a job whose request was for one dataset.
    One(String),
    OfSeveral(ManifestDatasets),
}

/// A job whose request had `datasets`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestDatasets {
    pub id: String,
    /// The number of the job's exports that have files, or had them at the commit. A reader that has as many manifests
    /// of the job has the whole job. The names of the datasets are left out: a reader of one dataset need not know of
    /// the others.
    pub datasets: String,
}

/// The identity of the database that an export comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestSource {
    /// The system identifier of the cluster, in hexadecimal.
    pub cluster: String,
    /// The database's oid.
    pub database: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestColumn {
    pub name: String,
    /// The column's type with length and precision, as Postgres writes it.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The type beneath a domain, with length and precision. `None` if the type is no domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The rule by which the column's values were masked. `None` if they were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// The kind of a column of `meta`. `None` for a column of the table and for the operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<MetaColumn>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// The SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    pub bytes: String,
    pub rows: String,
    /// The path of the file, relative to the manifest. The digest excludes it, so that files can be moved together with
    /// their manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    #[error("{0}")]
    Form(#[from] serde_json::Error),
    /// A name has the character that no text of Postgres has.
    #[error("it has a NUL")]
    Nul,
    /// The manifest has another version, so a later version of this program wrote it.
    #[error("it has version {0:?}, and this program reads version {VERSION:?}")]
    Version(String),
}

impl Manifest {
    /// Returns the place of the export in its lane. Returns `None` if the manifest does not say it.
    pub fn order(&self) -> Option<u64> {
        self.export.order.as_ref()?.parse().ok()
    }

    /// Builds the manifest of an export. `urls` are the URLs of its files, in the same order.
    pub fn new(number: u64, export: Chained, urls: Vec<String>) -> Manifest {
        let count = |text: &str| text.parse().unwrap_or(0);
        let meta = |file: &ManifestFile| Meta { content_length: count(&file.bytes), record_count: count(&file.rows) };
        let entry = |(file, url): (&ManifestFile, String)| Entry { url, mandatory: true, meta: meta(file) };
        let elements = export.columns.iter().map(|column| Element {
            name: column.name.clone(),
            element_type: ElementType { base: without_modifier(&column.type_name) },
        });
        let bytes = export.files.iter().map(|file| count(&file.bytes)).fold(0, u64::saturating_add);
        Manifest {
            entries: export.files.iter().zip(urls).map(entry).collect(),
            schema: Schema { elements: elements.collect() },
            meta: Meta { content_length: bytes, record_count: count(&export.rows) },
            author: Author { name: "cdc-export".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() },
            number,
            digest: export.digest(),
            export,
            signature: None,
            signature_version: None,
            signed_locations: None,
            copied_exports: None,
        }
    }

    pub fn locations(&self) -> Vec<SignedLocation> {
        let pairs = self.entries.iter().zip(&self.export.files);
        pairs.map(|(entry, file)| SignedLocation { url: entry.url.clone(), path: file.path.clone() }).collect()
    }

    /// Parses a manifest. Does not verify its digest: see [`Manifest::check`].
    pub fn read(text: &[u8]) -> Result<Manifest, InvalidManifest> {
        let manifest: Manifest = serde_json::from_slice(text)?;
        // JSON has a NUL in no other form.
        if text.windows(6).any(|bytes| bytes == br"\u0000") {
            return Err(InvalidManifest::Nul);
        }
        if manifest.export.version == VERSION {
            Ok(manifest)
        } else {
            Err(InvalidManifest::Version(manifest.export.version))
        }
    }

    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("texts, numbers and lists are JSON")
    }

    /// Returns the URLs of the files, one a line. BigQuery and Athena read such a list.
    pub fn uris(&self) -> String {
        self.entries.iter().map(|entry| format!("{}\n", entry.url)).collect()
    }

    pub fn name_in_folder(output_filename: &str) -> String {
        format!("{}{ENDING}", stem_of(output_filename))
    }

    pub fn is_name_in_folder(name: &str) -> bool {
        !name.starts_with('.') && name.ends_with(ENDING)
    }

    /// Returns the folder of a lane's manifests in a bucket, relative to the prefix.
    pub fn folder(dataset: &str, consumer: &ConsumerId) -> String {
        format!("{dataset}/{consumer}/{FOLDER}")
    }

    /// Returns the key of the lane's manifest with this number in a bucket, relative to the prefix.
    pub fn key(dataset: &str, consumer: &ConsumerId, number: u64) -> String {
        format!("{}/{number:020}.json", Manifest::folder(dataset, consumer))
    }

    pub fn is_key(key: &str) -> bool {
        let mut parts = key.rsplit('/');
        let name = parts.next().and_then(|name| name.strip_suffix(".json"));
        let is_number = name.is_some_and(|name| name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit()));
        is_number && parts.next() == Some(FOLDER)
    }
}

impl Chained {
    /// Computes the SHA-256 of the canonical form without the paths of the files, in hexadecimal.
    pub fn digest(&self) -> String {
        let mut pathless = self.clone();
        pathless.files.iter_mut().for_each(|file| file.path = None);
        let canonical = serde_json_canonicalizer::to_vec(&pathless).expect("texts and lists have a canonical form");
        hex::encode(digest::digest(&digest::SHA256, &canonical))
    }

    /// Returns true if the export holds all rows, so that a reader needs no earlier export.
    pub fn is_base(&self) -> bool {
        self.export_type == "full" || self.watermark_from.is_none() && self.previous.is_none()
    }

    /// Returns true if the rows were found by their times alone, because somebody set the watermark. The export may
    /// lack rows.
    pub fn is_by_time(&self) -> bool {
        matches!(self.continuity.as_deref(), Some("no_snapshot" | "watermark_edited"))
    }
}

impl ManifestJob {
    pub fn id(&self) -> &str {
        match self {
            ManifestJob::One(id) | ManifestJob::OfSeveral(ManifestDatasets { id, .. }) => id,
        }
    }

    /// Returns the number of the job's exports with files. `None` if its request was for one dataset.
    pub fn datasets(&self) -> Option<&str> {
        match self {
            ManifestJob::One(_) => None,
            ManifestJob::OfSeveral(ManifestDatasets { datasets, .. }) => Some(datasets),
        }
    }
}

/// A derived implementation would keep the whole member in memory, which may be as long as the manifest.
impl<'de> Deserialize<'de> for ManifestJob {
    fn deserialize<D: Deserializer<'de>>(job: D) -> Result<ManifestJob, D::Error> {
        job.deserialize_any(JobVisitor)
    }
}

struct JobVisitor;

impl<'de> Visitor<'de> for JobVisitor {
    type Value = ManifestJob;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id, or an id with the number of datasets")
    }

    fn visit_str<E: Error>(self, id: &str) -> Result<ManifestJob, E> {
        Ok(ManifestJob::One(id.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<ManifestJob, A::Error> {
        ManifestDatasets::deserialize(MapAccessDeserializer::new(members)).map(ManifestJob::OfSeveral)
    }
}

/// Removes the length or precision from the name of a type: `numeric(12,2)[]` becomes `numeric[]`.
fn without_modifier(type_name: &str) -> String {
    match type_name.split_once('(') {
        Some((base, rest)) => format!("{}{}", base.trim_end(), rest.split_once(')').map_or("", |(_, behind)| behind)),
        None => type_name.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::file_name::MOST_FILES;

    pub(crate) fn chained() -> Chained {
        Chained {
            version: VERSION.to_owned(),
            job: ManifestJob::One("019a0000-0000-7000-8000-000000000001".to_owned()),
            source: ManifestSource { cluster: "00000000000000ff".to_owned(), database: "16384".to_owned() },
            consumer: "search".to_owned(),
            dataset: "orders".to_owned(),
            table: Some("sales.orders".to_owned()),
            export_type: "full".to_owned(),
            key: vec!["id".to_owned()],
            columns: vec![ManifestColumn {
                name: "tötal\n".to_owned(),
                type_name: "numeric(12,2)[]".to_owned(),
                base: None,
                mask: None,
                meta: None,
            }],
            format: "csv".to_owned(),
            compression: "none".to_owned(),
            snapshot: Some("1041:1050:1043".to_owned()),
            continuity: None,
            watermark_from: None,
            watermark_to: Some("2026-11-20T10:14:58.402113Z".to_owned()),
            rows: "2".to_owned(),
            files: vec![ManifestFile {
                sha256: "ab".to_owned(),
                bytes: "10".to_owned(),
                rows: "2".to_owned(),
                path: Some("full_orders.csv".to_owned()),
            }],
            previous: None,
            order: None,
        }
    }

    /// Every later version, and every other program, must compute the digest that an earlier version signed.
    #[test]
    fn form_and_digest_are_stable_across_versions() {
        let manifest = Manifest::new(17, chained(), vec!["file:///srv/full_orders.csv".to_owned()]);
        let export = concat!(
            r#"{"columns":[{"name":"tötal\n","type":"numeric(12,2)[]"}],"compression":"none","consumer":"search","continuity":null,"#,
            r#""dataset":"orders","files":[{"bytes":"10","rows":"2","sha256":"ab"}],"format":"csv","#,
            r#""job":"019a0000-0000-7000-8000-000000000001","key":["id"],"previous":null,"rows":"2","snapshot":"1041:1050:1043","#,
            r#""source":{"cluster":"00000000000000ff","database":"16384"},"table":"sales.orders","type":"full","version":"1","#,
            r#""watermarkFrom":null,"watermarkTo":"2026-11-20T10:14:58.402113Z"}"#
        );
        assert_eq!(manifest.digest, hex::encode(digest::digest(&digest::SHA256, export.as_bytes())));
        let text = manifest.text();
        let begin = concat!(
            r#"{"entries":[{"url":"file:///srv/full_orders.csv","mandatory":true,"meta":{"content_length":10,"record_count":2}}],"#,
            r#""schema":{"elements":[{"name":"tötal\n","type":{"base":"numeric[]"}}]},"meta":{"content_length":10,"record_count":2},"#,
            r#""author":{"name":"cdc-export","version":"#
        );
        assert!(text.starts_with(begin), "{text}");
        assert!(text.contains(r#""number":17,"export":{"version":"1","job":"#), "{text}");
        assert_eq!(Manifest::read(text.as_bytes()).unwrap(), manifest);
        assert_eq!(manifest.uris(), "file:///srv/full_orders.csv\n");
    }

    #[test]
    fn job_of_several_datasets_is_an_object() {
        let of_several = |datasets: &str| {
            let (id, datasets) = (chained().job.id().to_owned(), datasets.to_owned());
            Chained { job: ManifestJob::OfSeveral(ManifestDatasets { id, datasets }), ..chained() }
        };
        assert_ne!(of_several("2").digest(), chained().digest());
        assert_ne!(of_several("2").digest(), of_several("3").digest());
        let text = Manifest::new(1, of_several("2"), Vec::new()).text();
        let member = r#""job":{"id":"019a0000-0000-7000-8000-000000000001","datasets":"2"}"#;
        assert!(text.contains(member), "{text}");
        assert_eq!(Manifest::read(text.as_bytes()).unwrap().export, of_several("2"));
        for other in [r#""job":{"id":"1"}"#, r#""job":{"id":"1","datasets":"2","a":1}"#, r#""job":1"#, r#""job":["1"]"#]
        {
            assert!(Manifest::read(text.replace(member, other).as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn manifest_of_another_version_is_rejected() {
        let manifest = Manifest::new(1, Chained { version: "2".to_owned(), ..chained() }, Vec::new());
        assert!(matches!(Manifest::read(manifest.text().as_bytes()), Err(InvalidManifest::Version(two)) if two == "2"));
        assert!(matches!(Manifest::read(b"{}"), Err(InvalidManifest::Form(_))));
        let nul = Manifest::new(1, Chained { consumer: "\0".to_owned(), ..chained() }, Vec::new());
        assert!(matches!(Manifest::read(nul.text().as_bytes()), Err(InvalidManifest::Nul)));
        // The digest would not cover an unknown member.
        let text = Manifest::new(1, chained(), Vec::new()).text();
        for (known, and) in [
            ("\"job\":", "\"evil\":1,\"job\":"),
            ("\"cluster\":", "\"host\":1,\"cluster\":"),
            ("\"bytes\":", "\"a\":1,\"bytes\":"),
        ] {
            assert!(Manifest::read(text.replace(known, and).as_bytes()).is_err(), "{and}");
        }
        // An element takes three bytes of JSON and twenty-four of memory, so the length of a list is limited.
        for (list, most) in [("\"key\":[", r#""","#), ("\"files\":[", r#"{"sha256":"","bytes":"","rows":""},"#)] {
            let read = |count| Manifest::read(text.replace(list, &format!("{list}{}", most.repeat(count))).as_bytes());
            assert!(read(9_999).is_ok(), "{list}");
            let refused = read(10_000).unwrap_err().to_string();
            assert!(refused.starts_with("a list of more than 10000 at line 1 column "), "{refused}");
        }
        let mut large = chained();
        large.files[0].bytes = u64::MAX.to_string();
        large.files.push(large.files[0].clone());
        assert_eq!(Manifest::new(1, large, Vec::new()).meta.content_length, u64::MAX);
    }

    #[test]
    fn names_of_manifests_differ_from_names_of_other_files() {
        assert_eq!(
            Manifest::name_in_folder("full_a.b_20260226T043000Z-2.csv.gz"),
            "full_a.b_20260226T043000Z-2.manifest.json"
        );
        assert!(
            Manifest::is_name_in_folder("a.manifest.json")
                && !Manifest::is_name_in_folder(".a.manifest.json")
                && !Manifest::is_name_in_folder("a.json")
        );
        let key = Manifest::key("orders", &"a:b".parse().unwrap(), 17);
        assert_eq!(key, "orders/a:b/_manifests/00000000000000000017.json");
        assert!(Manifest::is_key(&format!("prefix/{key}")) && Manifest::is_key(&key));
        for other in [
            "orders/a/_manifests/17.json",
            "orders/a/00000000000000000017.json",
            "_manifests/0000000000000000001x.json",
        ] {
            assert!(!Manifest::is_key(other), "{other}");
        }
    }

    #[test]
    fn the_longest_manifest_of_an_export_is_read() {
        let text = |length: usize| "x".repeat(length);
        let number = || u64::MAX.to_string();
        let file = ManifestFile { sha256: text(64), bytes: number(), rows: number(), path: Some(text(255)) };
        // A name of 63 bytes, each of which JSON writes as six; a type's name with its schema's, in quotes.
        let (name, type_name, base) = ("\u{1}".repeat(63), text(150), Some(text(150)));
        let column = ManifestColumn { name, type_name, base, mask: None, meta: None };
        let export = Chained {
            consumer: text(128),
            dataset: text(63),
            table: Some(text(150)),
            continuity: Some(text(100)),
            key: vec![text(63); 32],
            columns: vec![column; 1600],
            snapshot: Some(text(1 << 16)),
            files: vec![file; MOST_FILES],
            ..chained()
        };
        // The longest key of an object, and its bucket's name.
        let longest = Manifest::new(u64::MAX, export, vec![text(1024 + 100); MOST_FILES]).text().len() as u64;
        assert!((MAX_BYTES / 3..=MAX_BYTES * 2 / 3).contains(&longest), "{longest}");
    }
}
