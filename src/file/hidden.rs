//! The hidden files of a destination: drafts, staged files and unfinished markers, before they get their final names.

use uuid::Uuid;

use crate::database::DatabaseId;
use crate::job::{JobId, LeaseToken};

const DRAFT_ENDING: &str = ".part";
const MARKER_ENDING: &str = ".mark";

/// A hidden file of a destination: a file of an attempt, or a marker that is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HiddenFile {
    pub name: String,
    pub database: DatabaseId,
    pub job: JobId,
    /// The lease token of the attempt. A marker has a random token instead.
    pub token: LeaseToken,
    /// The number of the file within the attempt, from 1.
    pub part: u32,
}

impl HiddenFile {
    /// Returns the first file of an attempt.
    pub fn of_attempt(database: &DatabaseId, job: JobId, token: LeaseToken) -> HiddenFile {
        let name = format!(".{database}.{job}.{}{DRAFT_ENDING}", token.as_uuid());
        HiddenFile { name, database: database.clone(), job, token, part: 1 }
    }

    /// Returns another file of the same attempt. `part` is 2 or more.
    pub fn with_part(&self, part: u32) -> HiddenFile {
        let stem = self.name.strip_suffix(DRAFT_ENDING).unwrap_or(&self.name);
        HiddenFile { name: format!("{stem}.{part}{DRAFT_ENDING}"), part, ..self.clone() }
    }

    pub fn of_marker(database: &DatabaseId, job: JobId) -> HiddenFile {
        let token = LeaseToken::random();
        let name = format!(".{database}.{job}.{}{MARKER_ENDING}", token.as_uuid());
        HiddenFile { name, database: database.clone(), job, token, part: 1 }
    }

    pub fn is_marker(&self) -> bool {
        self.name.ends_with(MARKER_ENDING)
    }

    /// Parses the name of a file at the destination. Returns `None` if it is not the name of a hidden file.
    pub fn read(name: &str) -> Option<HiddenFile> {
        let stem = name.strip_prefix('.')?;
        let stem = stem.strip_suffix(DRAFT_ENDING).or_else(|| stem.strip_suffix(MARKER_ENDING))?;
        let (stem, part) = match stem.rsplit_once('.') {
            Some((stem, number)) if number.len() < 10 => (stem, number.parse().ok()?),
            _ => (stem, 1),
        };
        let (rest, token) = stem.rsplit_once('.')?;
        let (database, job) = rest.split_once('.')?;
        let database = database.parse().ok()?;
        let (job, token) = (job.parse::<Uuid>().ok()?.into(), token.parse::<Uuid>().ok()?.into());
        Some(HiddenFile { name: name.to_owned(), database, job, token, part })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_names_round_trip() {
        let database: DatabaseId = "00000000000000ff-16384".parse().unwrap();
        for file in [
            HiddenFile::of_attempt(&database, JobId::random(), LeaseToken::random()),
            HiddenFile::of_attempt(&database, JobId::random(), LeaseToken::random()).with_part(2),
            HiddenFile::of_marker(&database, JobId::random()),
        ] {
            assert_eq!(HiddenFile::read(&file.name), Some(file));
        }
        for other in [".cdc-export-store", ".lane-00000000000000ff-1-0.json", ".a.b.c.part", "a.part", ".part"] {
            assert_eq!(HiddenFile::read(other), None, "{other}");
        }
    }
}
