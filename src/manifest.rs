//! A manifest: which files an export has, and which export of its lane came before. Its form, its digest and its name.
//!
//! Written once, behind the files, and never replaced: whoever reads the manifests of a lane in the order of their
//! numbers has all of its files, and sees if one is missing. Knows neither the destination that holds it nor the
//! database that it comes from.

pub mod chain;
pub mod chain_report;
mod list;
pub mod seal;
pub mod signing;

use ring::digest;
use serde::{Deserialize, Serialize};

use crate::file::name::stem_of;
use crate::job::ConsumerId;

/// The version of the form of [`Chained`], which is what the digest is of.
pub const VERSION: &str = "1";

/// What a manifest's name ends with in a folder.
const ENDING: &str = ".manifest.json";
/// Where the manifests of a lane lie in a bucket, beside the lane's files.
const FOLDER: &str = "_manifests";

/// A manifest. What stands before `number` is what Redshift's `COPY … MANIFEST` reads and its `UNLOAD … MANIFEST
/// VERBOSE` writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The files, in the order of their parts.
    #[serde(deserialize_with = "list::read")]
    pub entries: Vec<Entry>,
    /// Their columns.
    pub schema: Schema,
    /// All files together.
    pub meta: Meta,
    /// Who wrote it.
    pub author: Author,
    /// The export's place in its lane, from 1. In a place to which manifests were copied it may be another one.
    pub number: u64,
    /// The export, and the one before.
    pub export: Chained,
    /// The SHA-256 of `export` in its canonical form (RFC 8785) without the `path` of its files, in hexadecimal.
    pub digest: String,
    /// The Ed25519 signature of the digest's 32 bytes in hexadecimal, where the service has a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// A file, as loaders want it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it is.
    pub url: String,
    /// That a loader has to fail without it.
    pub mandatory: bool,
    /// How much it is.
    pub meta: Meta,
}

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Bytes.
    pub content_length: u64,
    /// Rows.
    pub record_count: u64,
}

/// The columns of the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// Each of them, in order.
    #[serde(deserialize_with = "list::read")]
    pub elements: Vec<Element>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Element {
    /// Its name in the files.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub of: ElementType,
}

/// A column's type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElementType {
    /// As Postgres writes it, without length and precision.
    pub base: String,
}

/// Who wrote a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// The program.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// An export as its lane's chain has it. All numbers are texts: so its canonical form is the same to every reader of
/// JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Chained {
    /// [`VERSION`].
    pub version: String,
    /// The export's id.
    pub job: String,
    /// The database that the rows are from.
    pub source: Source,
    /// For whom.
    pub consumer: String,
    /// Of which dataset.
    pub dataset: String,
    /// Which table that was, with its schema; `None`: a version exported it that didn't say.
    pub table: Option<String>,
    /// Which rows: `full`, `incremental` or `delta`.
    #[serde(rename = "type")]
    pub export_type: String,
    /// The names of the columns that tell rows apart.
    #[serde(deserialize_with = "list::read")]
    pub key: Vec<String>,
    /// The files' columns, in order.
    #[serde(deserialize_with = "list::read")]
    pub columns: Vec<Column>,
    /// `csv`, `ndjson` or `parquet`.
    pub format: String,
    /// `none`, `gzip` or `zstd`.
    pub compression: String,
    /// The snapshot whose rows they are, as Postgres writes it; `None`: the dataset goes by its times alone.
    pub snapshot: Option<String>,
    /// What stood between the last export and this one, other than changes.
    pub continuity: Option<String>,
    /// The consumer's watermark before.
    pub watermark_from: Option<String>,
    /// The consumer's watermark after.
    pub watermark_to: Option<String>,
    /// Rows of all files.
    pub rows: String,
    /// The files, in the order of their parts.
    #[serde(deserialize_with = "list::read")]
    pub files: Vec<File>,
    /// The digest of the lane's export before; `None`: it is the lane's first one that has a digest.
    pub previous: Option<String>,
}

/// The identity of a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its cluster's identifier, in hexadecimal.
    pub cluster: String,
    /// Its number there.
    pub database: String,
}

/// A column of the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type with length and precision, as Postgres writes it.
    #[serde(rename = "type")]
    pub type_name: String,
}

/// A file of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// Its size.
    pub bytes: String,
    /// Its rows.
    pub rows: String,
    /// Where it is from where the manifest is. The digest leaves it out: files may be moved, together with their
    /// manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Why a text is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It isn't JSON, or not of this form.
    #[error("{0}")]
    Form(#[from] serde_json::Error),
    /// A later version of this program wrote it.
    #[error("it is of version {0:?}, and this program reads version {VERSION:?}")]
    Version(String),
}

impl Manifest {
    /// The manifest of an export with files at these addresses, in the order of its files.
    pub fn new(number: u64, export: Chained, urls: Vec<String>) -> Manifest {
        let count = |text: &str| text.parse().unwrap_or(0);
        let meta = |file: &File| Meta { content_length: count(&file.bytes), record_count: count(&file.rows) };
        let entry = |(file, url): (&File, String)| Entry { url, mandatory: true, meta: meta(file) };
        let elements = export.columns.iter().map(|column| Element {
            name: column.name.clone(),
            of: ElementType { base: without_modifier(&column.type_name) },
        });
        let bytes = export.files.iter().map(|file| count(&file.bytes)).fold(0, u64::saturating_add);
        Manifest {
            entries: export.files.iter().zip(urls).map(entry).collect(),
            schema: Schema { elements: elements.collect() },
            meta: Meta { content_length: bytes, record_count: count(&export.rows) },
            author: Author { name: env!("CARGO_PKG_NAME").to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() },
            number,
            digest: export.digest(),
            export,
            signature: None,
        }
    }

    /// Reads a manifest. Whether its digest is right, nobody has looked.
    ///
    /// # Errors
    /// If it isn't one.
    pub fn read(text: &[u8]) -> Result<Manifest, Unreadable> {
        let manifest: Manifest = serde_json::from_slice(text)?;
        if manifest.export.version == VERSION {
            Ok(manifest)
        } else {
            Err(Unreadable::Version(manifest.export.version))
        }
    }

    /// The manifest as it is written.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("texts, numbers and lists are JSON")
    }

    /// The addresses of the files, a line each: what BigQuery and Athena take for a list of files.
    pub fn uris(&self) -> String {
        self.entries.iter().map(|entry| format!("{}\n", entry.url)).collect()
    }
}

impl Chained {
    /// The SHA-256 of the canonical form without the files' paths, in hexadecimal.
    pub fn digest(&self) -> String {
        let mut pathless = self.clone();
        pathless.files.iter_mut().for_each(|file| file.path = None);
        let canonical = serde_json_canonicalizer::to_vec(&pathless).expect("texts and lists have a canonical form");
        hex::encode(digest::digest(&digest::SHA256, &canonical))
    }

    /// Whether it holds all there was: nothing before it is needed.
    pub fn is_base(&self) -> bool {
        self.export_type == "full" || self.watermark_from.is_none() && self.previous.is_none()
    }
}

/// A type without its length or precision: `numeric(12,2)[]` is a `numeric[]`.
fn without_modifier(type_name: &str) -> String {
    match type_name.split_once('(') {
        Some((base, rest)) => format!("{}{}", base.trim_end(), rest.split_once(')').map_or("", |(_, behind)| behind)),
        None => type_name.to_owned(),
    }
}

/// The name of a manifest in a folder, beside the file or files of this name.
pub fn name_in_folder(output_filename: &str) -> String {
    format!("{}{ENDING}", stem_of(output_filename))
}

/// Whether a file of a folder is a manifest, by its name.
pub fn is_name_in_folder(name: &str) -> bool {
    !name.starts_with('.') && name.ends_with(ENDING)
}

/// The folder of a lane's manifests in a bucket, below the prefix.
pub fn folder(dataset: &str, consumer: &ConsumerId) -> String {
    format!("{dataset}/{consumer}/{FOLDER}")
}

/// The key of a lane's manifest of this number in a bucket, below the prefix.
pub fn key(dataset: &str, consumer: &ConsumerId, number: u64) -> String {
    format!("{}/{number:020}.json", folder(dataset, consumer))
}

/// Whether an object is a manifest, by its key.
pub fn is_key(key: &str) -> bool {
    let mut parts = key.rsplit('/');
    let name = parts.next().and_then(|name| name.strip_suffix(".json"));
    let is_number = name.is_some_and(|name| name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit()));
    is_number && parts.next() == Some(FOLDER)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn chained() -> Chained {
        Chained {
            version: VERSION.to_owned(),
            job: "019a0000-0000-7000-8000-000000000001".to_owned(),
            source: Source { cluster: "00000000000000ff".to_owned(), database: "16384".to_owned() },
            consumer: "search".to_owned(),
            dataset: "orders".to_owned(),
            table: Some("sales.orders".to_owned()),
            export_type: "full".to_owned(),
            key: vec!["id".to_owned()],
            columns: vec![Column { name: "tötal\n".to_owned(), type_name: "numeric(12,2)[]".to_owned() }],
            format: "csv".to_owned(),
            compression: "none".to_owned(),
            snapshot: Some("1041:1050:1043".to_owned()),
            continuity: None,
            watermark_from: None,
            watermark_to: Some("2026-11-20T10:14:58.402113Z".to_owned()),
            rows: "2".to_owned(),
            files: vec![File {
                sha256: "ab".to_owned(),
                bytes: "10".to_owned(),
                rows: "2".to_owned(),
                path: Some("full_orders.csv".to_owned()),
            }],
            previous: None,
        }
    }

    fn manifest_of_large_files() -> Manifest {
        let mut export = chained();
        export.files[0].bytes = u64::MAX.to_string();
        export.files.push(export.files[0].clone());
        Manifest::new(1, export, Vec::new())
    }

    /// What one version signs and writes, every later one and every other program has to find the same digest for.
    #[test]
    fn the_form_and_the_digest_are_never_changed() {
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
    fn the_digest_is_of_all_but_paths() {
        let digest = chained().digest();
        let mut moved = chained();
        moved.files[0].path = Some("elsewhere/a.csv".to_owned());
        assert_eq!(moved.digest(), digest);
        let mut changed = chained();
        changed.files[0].bytes = "11".to_owned();
        assert_ne!(changed.digest(), digest);
        assert_ne!(Chained { previous: Some(digest.clone()), ..chained() }.digest(), digest);
    }

    #[test]
    fn a_manifest_of_another_version_is_not_guessed_at() {
        let manifest = Manifest::new(1, Chained { version: "2".to_owned(), ..chained() }, Vec::new());
        assert!(matches!(Manifest::read(manifest.text().as_bytes()), Err(Unreadable::Version(two)) if two == "2"));
        assert!(matches!(Manifest::read(b"{}"), Err(Unreadable::Form(_))));
        // What the digest would not cover, since we don't know it.
        let text = Manifest::new(1, chained(), Vec::new()).text();
        for (known, and) in [
            ("\"job\":", "\"evil\":1,\"job\":"),
            ("\"cluster\":", "\"host\":1,\"cluster\":"),
            ("\"bytes\":", "\"a\":1,\"bytes\":"),
        ] {
            assert!(Manifest::read(text.replace(known, and).as_bytes()).is_err(), "{and}");
        }
        // Three bytes for an element of twenty-four, as long as somebody likes.
        for (list, most) in [("\"key\":[", r#""","#), ("\"files\":[", r#"{"sha256":"","bytes":"","rows":""},"#)] {
            let read = |count| Manifest::read(text.replace(list, &format!("{list}{}", most.repeat(count))).as_bytes());
            assert!(read(9_999).is_ok(), "{list}");
            let refused = read(10_000).unwrap_err().to_string();
            assert!(refused.starts_with("a list of more than 10000 at line 1 column "), "{refused}");
        }
        let large = manifest_of_large_files();
        assert_eq!(large.meta.content_length, u64::MAX);
    }

    #[test]
    fn names_are_told_from_those_of_other_files() {
        assert_eq!(name_in_folder("full_a.b_20260226T043000Z-2.csv.gz"), "full_a.b_20260226T043000Z-2.manifest.json");
        assert!(
            is_name_in_folder("a.manifest.json")
                && !is_name_in_folder(".a.manifest.json")
                && !is_name_in_folder("a.json")
        );
        let key = key("orders", &"a:b".parse().unwrap(), 17);
        assert_eq!(key, "orders/a:b/_manifests/00000000000000000017.json");
        assert!(is_key(&format!("prefix/{key}")) && is_key(&key));
        for other in [
            "orders/a/_manifests/17.json",
            "orders/a/00000000000000000017.json",
            "_manifests/0000000000000000001x.json",
        ] {
            assert!(!is_key(other), "{other}");
        }
    }
}
