//! The marker of a lane at a destination. It reveals that a database was restored.

use uuid::Uuid;

use crate::job::JobId;

/// The marker next to the files of a lane. It names the last export that was published, or was about to be.
///
/// The publisher makes the marker durable before it renames the files. So if the database does not know this job as
/// completed, the database has lost an export that consumers may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    pub job: JobId,
    /// The digest of the export's content, in hexadecimal: see [`content_sha256`](crate::file::content_sha256).
    pub sha256: String,
    /// The place of the export in its lane.
    pub order: i64,
}

impl Marker {
    /// Returns the marker that stands for an unreadable one. It names an export that no database knows.
    pub fn unreadable() -> Marker {
        Marker { job: Uuid::nil().into(), sha256: String::new(), order: 0 }
    }

    pub fn is_unreadable(&self) -> bool {
        self.job.as_uuid().is_nil()
    }
}
