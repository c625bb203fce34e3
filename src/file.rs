//! A file of an export: where it is, how it is known, and how it is called.
//!
//! Knows neither the destination that holds it nor the table that records it.

pub mod hidden;
pub mod name;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::database::DatabaseId;
use crate::file::name::part_name;
use crate::job::marker::Marker;
use crate::job::{ConsumerId, JobId};
use crate::trace::TraceParent;
use pg_rows::encoding::Encoding;

/// As many files as an export may have: their names have five digits for it, and a client gets all of them in one
/// answer.
pub const MOST_FILES: usize = 10_000;

/// What an attempt made: files that are whole and durable, still under their hidden names.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Rows in all files, headers not among them.
    pub rows: u64,
    /// Those among them that the timestamps alone would have missed.
    pub late_rows: u64,
    /// Those that are gone, and of which the log has the key alone.
    pub key_only_deletes: u64,
    /// The latest finite `updated_at` among those that are in the table.
    pub last_updated_at: Option<DateTime<Utc>>,
    /// The files, one at least, in the order of their parts.
    pub parts: Vec<Part>,
}

/// A file of an export: the only one, or one of several, each of which is whole by itself.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its rows, the header not among them.
    pub rows: u64,
    /// The file as its attempt left it.
    pub staged: StagedFile,
}

/// What tells an export's content from any other's: the SHA-256 of its file; of several, that of their SHA-256s, a line
/// each.
pub fn content_sha256(parts: &[Part]) -> String {
    match parts {
        [only] => only.staged.sha256.clone(),
        several => {
            let lines: String = several.iter().map(|part| format!("{}\n", part.staged.sha256)).collect();
            hex::encode(ring::digest::digest(&ring::digest::SHA256, lines.as_bytes()))
        }
    }
}

/// A staged file, and how to know it again under its final name.
#[derive(Clone, Debug)]
pub struct StagedFile {
    /// The id of the destination that has it.
    pub destination: Uuid,
    /// Its hidden name there.
    pub name: String,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// What a file of another content can't share.
    pub identity: FileIdentity,
}

/// How a file is known again: a renamed file keeps all of it, a rewritten or copied one doesn't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// Its size.
    pub bytes: u64,
    /// Where its destination has it, whatever it is called there.
    pub location: FileLocation,
}

/// Where a destination has a file. Recorded as JSON; the numbers are texts there, since a JSON reader may round those
/// beyond 2^53.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FileLocation {
    /// On the disk of a folder.
    #[serde(rename_all = "camelCase")]
    Folder {
        /// Number of its inode.
        #[serde(with = "text")]
        inode: u64,
        /// Last modification, nanoseconds since 1970.
        #[serde(with = "text")]
        modified_ns: i64,
    },
    /// Uploaded to a bucket, where it isn't to be seen until the upload is completed.
    Upload {
        /// The key that it will have.
        key: String,
        /// The store's name for the upload; empty where it needs none.
        upload: String,
        /// What the store called the parts, in their order.
        parts: Vec<String>,
    },
    /// An object of a bucket.
    Object {
        /// Its key.
        key: String,
        /// The tag of its content; `None`: the store gave none.
        etag: Option<String>,
    },
}

/// A number as the text of its decimal digits.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(number: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, N: FromStr<Err: Display>>(
        deserializer: D,
    ) -> Result<N, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// What is recorded of a completed job's files.
#[derive(Clone, Debug)]
pub struct FileRecord {
    /// The job that made them.
    pub job: JobId,
    /// The consumer of the job's lane; `None`: the job is an ad-hoc one.
    pub consumer: Option<ConsumerId>,
    /// The database that this record was read from.
    pub database: DatabaseId,
    /// Whether that database's service made them. A copy of the database doesn't name or remove the original's files.
    pub is_own: bool,
    /// Of which dataset.
    pub dataset: String,
    /// How they are written.
    pub encoding: Encoding,
    /// The final name of the file, where there is one; those of several are made of it.
    pub name: String,
    /// See [`content_sha256`].
    pub sha256: String,
    /// The files, in the order of their parts.
    pub parts: Vec<Part>,
    /// The text of the manifest, where it is written down and the files may still lack their names.
    pub manifest: Option<String>,
    /// Which export the destination's marker of the lane named when the job's attempt began.
    pub marker_seen: Option<JobId>,
    /// When they were committed.
    pub finished_at: DateTime<Utc>,
    /// Whether they have their final names.
    pub is_published: bool,
    /// Where the job belongs in a trace.
    pub trace: Option<TraceParent>,
}

impl FileRecord {
    /// What the destination shall remember of its lane when it hands these files out.
    pub fn marker(&self) -> Marker {
        Marker { job: self.job, sha256: self.sha256.clone() }
    }

    /// The files with their final names.
    pub fn files(&self) -> impl Iterator<Item = (String, &StagedFile)> {
        let names = file_names(&self.name, self.parts.len());
        names.zip(&self.parts).map(|(name, part)| (name, &part.staged))
    }
}

/// The names of so many files of an export: one has the export's own, several have their numbers in it.
pub fn file_names(name: &str, files: usize) -> impl Iterator<Item = String> {
    (1..=files as u32).map(move |part| if files == 1 { name.to_owned() } else { part_name(name, part) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_survives_any_reader_of_json() {
        let location = FileLocation::Folder { inode: u64::MAX, modified_ns: i64::MIN };
        let json = r#"{"folder":{"inode":"18446744073709551615","modifiedNs":"-9223372036854775808"}}"#;
        assert_eq!(serde_json::to_string(&location).unwrap(), json);
        assert_eq!(serde_json::from_str::<FileLocation>(json).unwrap(), location);
        assert!(serde_json::from_str::<FileLocation>(r#"{"folder":{"inode":"-1","modifiedNs":"0"}}"#).is_err());
    }
}
