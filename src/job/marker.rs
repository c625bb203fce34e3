//! The memory of a lane at a destination.

use uuid::Uuid;

use crate::job::JobId;

/// The marker beside the files of a lane: it names the last export that was about to get its final name. It is durable
/// before the name is, so that a database which doesn't know this job as completed has lost something that was handed
/// out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The export's id.
    pub job: JobId,
    /// The SHA-256 of its file, in hexadecimal.
    pub sha256: String,
}

impl Marker {
    /// In place of a marker that can't be read: it names an export that no database knows.
    pub fn unreadable() -> Marker {
        Marker { job: Uuid::nil().into(), sha256: String::new() }
    }

    /// Returns true if the marker could not be read.
    pub fn is_unreadable(&self) -> bool {
        self.job.as_uuid().is_nil()
    }
}
