//! The files of an export: their locations, identities and names.
//!
//! This module must not know the destination that stores a file, nor the table that records it.

pub mod hidden;
pub mod name;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::database::DatabaseId;
use crate::job::JobId;
use crate::job::marker::Marker;
use crate::trace::TraceParent;
use cdc_manifest::consumer::ConsumerId;
use cdc_manifest::file_name::file_names;
use pg_rows::encoding::Encoding;

/// The result of a successful attempt: complete and durable files, still under their hidden names.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    /// The number of rows in all files, without headers.
    pub rows: u64,
    /// The number of rows that the timestamps alone would have missed.
    pub late_rows: u64,
    /// The latest finite `updated_at` of the rows that are not deleted.
    pub last_updated_at: Option<DateTime<Utc>>,
    /// The files in the order of their parts. None if the export is skipped, because there is nothing to export.
    pub parts: Vec<Part>,
}

/// A file of an export. An export has one or several, and each of them is a complete file of its format.
#[derive(Clone, Debug)]
pub struct Part {
    /// The number of rows, without the header.
    pub rows: u64,
    pub staged: StagedFile,
}

/// Returns the digest of an export's content, in hexadecimal.
///
/// For one file, this is the SHA-256 of the file. For several files, it is the SHA-256 of a list of their SHA-256s, one
/// a line.
pub fn content_sha256(parts: &[Part]) -> String {
    match parts {
        [only] => only.staged.sha256.clone(),
        several => {
            let lines: String = several.iter().map(|part| format!("{}\n", part.staged.sha256)).collect();
            hex::encode(ring::digest::digest(&ring::digest::SHA256, lines.as_bytes()))
        }
    }
}

/// A staged file, with the identity that recognizes it under its final name.
#[derive(Clone, Debug)]
pub struct StagedFile {
    /// The id of the destination that stores the file.
    pub destination: Uuid,
    /// The hidden name of the file at the destination.
    pub name: String,
    /// The SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    pub identity: FileIdentity,
}

/// The identity of a file. A renamed file keeps its identity; a rewritten or copied file has another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    pub bytes: u64,
    /// The location at the destination, which does not depend on the file's name.
    pub location: FileLocation,
}

/// The location of a file at a destination.
///
/// It is recorded as JSON. The numbers are strings there, because a JSON reader may round numbers above 2^53.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FileLocation {
    #[serde(rename_all = "camelCase")]
    Folder {
        #[serde(with = "text")]
        inode: u64,
        /// The time of the last modification, in nanoseconds since 1970.
        #[serde(with = "text")]
        modified_ns: i64,
    },
    /// A multipart upload to a bucket. The object is not visible until the upload is completed.
    Upload {
        key: String,
        /// The object store's id of the upload. Empty if the object store needs none.
        upload: String,
        /// The object store's ids of the parts, in order.
        parts: Vec<String>,
    },
    Object {
        key: String,
        /// The ETag of the object. `None` if the object store returned none.
        etag: Option<String>,
    },
}

/// Serializes a number as a string of decimal digits.
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

#[derive(Clone, Debug)]
pub struct FileRecord {
    pub job: JobId,
    /// The consumer of the export's lane. `None` for an ad-hoc export.
    pub consumer: Option<ConsumerId>,
    pub database: DatabaseId,
    /// True if a service on that database wrote the files. A service on a copy of the database must not rename or
    /// remove the files of the original.
    pub is_own: bool,
    pub dataset: String,
    pub encoding: Encoding,
    /// The final name of an only file. The names of several files are derived from it: see [`file_names`].
    pub name: String,
    /// The digest of the content: see [`content_sha256`].
    pub sha256: String,
    /// The place of the export in its lane. `None` for an ad-hoc export.
    pub order: Option<i64>,
    pub parts: Vec<Part>,
    /// The text of the manifest, if it is recorded and the files are perhaps not published yet.
    pub manifest: Option<String>,
    /// The job of the export that the destination's marker of the lane named when the attempt began.
    pub marker_seen: Option<JobId>,
    /// The time of the commit. `None` in the process that has just committed.
    pub finished_at: Option<DateTime<Utc>>,
    pub is_published: bool,
    /// True if Postgres has a synchronous standby, which may lack the commit.
    pub awaits_standby: bool,
    pub trace: Option<TraceParent>,
}

impl FileRecord {
    /// Returns the marker that the destination stores for the lane before these files are published.
    pub fn marker(&self) -> Marker {
        Marker { job: self.job, sha256: self.sha256.clone(), order: self.order.unwrap_or_default() }
    }

    pub fn files(&self) -> impl Iterator<Item = (String, &StagedFile)> {
        let names = file_names(&self.name, self.parts.len());
        names.zip(&self.parts).map(|(name, part)| (name, &part.staged))
    }

    pub fn owned_files(&self) -> Vec<(String, StagedFile)> {
        self.files().map(|(name, file)| (name, file.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn location_keeps_numbers_above_2_to_the_53_in_json() {
        let location = FileLocation::Folder { inode: u64::MAX, modified_ns: i64::MIN };
        let json = r#"{"folder":{"inode":"18446744073709551615","modifiedNs":"-9223372036854775808"}}"#;
        assert_eq!(serde_json::to_string(&location).unwrap(), json);
        assert_eq!(serde_json::from_str::<FileLocation>(json).unwrap(), location);
        assert!(serde_json::from_str::<FileLocation>(r#"{"folder":{"inode":"-1","modifiedNs":"0"}}"#).is_err());
    }
}
