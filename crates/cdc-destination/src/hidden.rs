//! The hidden files of a destination: drafts, staged files and unfinished markers, before they get their final names.

use uuid::Uuid;

use crate::DatabaseId;
use cdc_manifest::JobId;

const DRAFT_ENDING: &str = ".part";
const MARKER_ENDING: &str = ".mark";

/// A hidden file of a destination: a file of an attempt, or a marker that is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HiddenFile {
    pub name: String,
    pub database: DatabaseId,
    pub job: JobId,
    /// The lease token of the attempt. A marker has a random token instead.
    pub token: Uuid,
    /// The place of the export among those of its job, from 1. A marker has 1.
    export: u32,
    /// The number of the file within the export, from 1.
    pub part: u32,
}

impl HiddenFile {
    /// Returns the first file that an attempt writes for one of the job's exports.
    pub fn of_attempt(database: &DatabaseId, job: JobId, token: Uuid, export: u32) -> HiddenFile {
        let file = HiddenFile { name: String::new(), database: database.clone(), job, token, export, part: 1 };
        file.with_part(1)
    }

    pub fn with_part(&self, part: u32) -> HiddenFile {
        let HiddenFile { database, job, token, export, .. } = self;
        let name = format!(".{database}.{job}.{token}.{export}.{part}{DRAFT_ENDING}");
        HiddenFile { name, part, ..self.clone() }
    }

    pub fn of_marker(database: &DatabaseId, job: JobId) -> HiddenFile {
        let token = Uuid::new_v4();
        let name = format!(".{database}.{job}.{token}{MARKER_ENDING}");
        HiddenFile { name, database: database.clone(), job, token, export: 1, part: 1 }
    }

    pub fn is_marker(&self) -> bool {
        self.name.ends_with(MARKER_ENDING)
    }

    /// Parses the name of a file at the destination. Returns `None` if it is not the name of a hidden file.
    pub fn read(name: &str) -> Option<HiddenFile> {
        let stem = name.strip_prefix('.')?;
        let (stem, export, part) = match stem.strip_suffix(DRAFT_ENDING) {
            Some(draft) => {
                let (rest, part) = draft.rsplit_once('.')?;
                let (stem, export) = rest.rsplit_once('.')?;
                (stem, export.parse().ok()?, part.parse().ok()?)
            }
            None => (stem.strip_suffix(MARKER_ENDING)?, 1, 1),
        };
        let (rest, token) = stem.rsplit_once('.')?;
        let (database, job) = rest.split_once('.')?;
        let database = database.parse().ok()?;
        let (job, token) = (job.parse::<Uuid>().ok()?.into(), token.parse().ok()?);
        Some(HiddenFile { name: name.to_owned(), database, job, token, export, part })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_names_round_trip() {
        let database: DatabaseId = "00000000000000ff-16384".parse().unwrap();
        for file in [
            HiddenFile::of_attempt(&database, JobId::random(), Uuid::new_v4(), 1),
            HiddenFile::of_attempt(&database, JobId::random(), Uuid::new_v4(), 1_000).with_part(2),
            HiddenFile::of_marker(&database, JobId::random()),
        ] {
            assert_eq!(HiddenFile::read(&file.name), Some(file));
        }
        for other in [".cdc-export-store", ".lane-00000000000000ff-1-0.json", ".a.b.c.part", "a.part", ".part"] {
            assert_eq!(HiddenFile::read(other), None, "{other}");
        }
    }
}
