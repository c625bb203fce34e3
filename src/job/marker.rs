//! What a destination remembers of a lane.

use uuid::Uuid;

use crate::job::JobId;

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
