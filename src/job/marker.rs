//! Which database a file belongs to, and what the folder remembers of a lane.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::job::{JobId, LeaseToken};

/// A database's identity, the same for all who connect to it: its cluster's identifier and its own number there. A copy has another
/// one, but that which is made of the cluster's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseId(String);

/// Why a text is no database's identity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a database's identity is 16 hexadecimal digits, `-` and a number")]
pub struct BadDatabaseId;

impl DatabaseId {
    /// The identity as SQL stores it. It may stand in a file's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DatabaseId {
    type Err = BadDatabaseId;

    fn from_str(text: &str) -> Result<DatabaseId, BadDatabaseId> {
        let (cluster, number) = text.split_once('-').ok_or(BadDatabaseId)?;
        let is_cluster = cluster.len() == 16 && cluster.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let is_number = (1..=10).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        if is_cluster && is_number { Ok(DatabaseId(text.to_owned())) } else { Err(BadDatabaseId) }
    }
}

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What stands beside the files of a lane: its last export that was about to get its name. Made durable before the name is, so
/// that a database which doesn't know this job as completed has lost something that was handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Which export.
    pub job: JobId,
    /// The SHA-256 of its file, in hexadecimal.
    pub sha256: String,
}

impl Marker {
    /// What stands where a marker belongs and can't be read as one: it names an export that no database knows.
    pub fn unreadable() -> Marker {
        Marker { job: Uuid::nil().into(), sha256: String::new() }
    }

    /// Whether it is such a one.
    pub fn is_unreadable(&self) -> bool {
        self.job.as_uuid().is_nil()
    }
}

/// A hidden file of the output folder: what an attempt writes, or a marker before it has its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HiddenFile {
    /// How it is called.
    pub name: String,
    /// Whose it is; `None`: it is of a version that didn't say.
    pub database: Option<DatabaseId>,
    /// Of which job.
    pub job: JobId,
    /// Of which attempt; a marker has a token of its own.
    pub token: LeaseToken,
}

impl HiddenFile {
    /// The file of an attempt.
    pub fn of_attempt(database: &DatabaseId, job: JobId, token: LeaseToken) -> HiddenFile {
        let name = format!(".{database}.{job}.{}.part", token.as_uuid());
        HiddenFile { name, database: Some(database.clone()), job, token }
    }

    /// A marker that is being written.
    pub fn of_marker(database: &DatabaseId, job: JobId) -> HiddenFile {
        let token = LeaseToken::random();
        let name = format!(".{database}.{job}.{}.mark", token.as_uuid());
        HiddenFile { name, database: Some(database.clone()), job, token }
    }

    /// The file of this name, if it is one of these.
    pub fn read(name: &str) -> Option<HiddenFile> {
        let stem = name.strip_prefix('.')?;
        let stem = stem.strip_suffix(".part").or_else(|| stem.strip_suffix(".mark"))?;
        let (rest, token) = stem.rsplit_once('.')?;
        let (database, job) = match rest.split_once('.') {
            Some((database, job)) => (Some(database.parse().ok()?), job),
            None => (None, rest),
        };
        let (job, token) = (job.parse::<Uuid>().ok()?.into(), token.parse::<Uuid>().ok()?.into());
        Some(HiddenFile { name: name.to_owned(), database, job, token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_names_are_read_as_they_were_given() {
        let database: DatabaseId = "00000000000000ff-16384".parse().unwrap();
        for file in [
            HiddenFile::of_attempt(&database, JobId::new(), LeaseToken::random()),
            HiddenFile::of_marker(&database, JobId::new()),
        ] {
            assert_eq!(HiddenFile::read(&file.name), Some(file));
        }
        // As older versions called them.
        let (job, token) = (JobId::new(), LeaseToken::random());
        let name = format!(".{job}.{}.part", token.as_uuid());
        assert_eq!(HiddenFile::read(&name), Some(HiddenFile { name, database: None, job, token }));
        for other in [".cdc-export-store", ".lane-00000000000000ff-1-0.json", ".a.b.c.part", "a.part", ".part"] {
            assert_eq!(HiddenFile::read(other), None, "{other}");
        }
    }

    #[test]
    fn an_identity_leads_nowhere() {
        for bad in ["", "-", "../../../../../../-1", "00000000000000FF-1", "00000000000000ff-", "00000000000000ff-1/2"]
        {
            assert_eq!(bad.parse::<DatabaseId>(), Err(BadDatabaseId), "{bad}");
        }
    }
}
