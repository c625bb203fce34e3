//! The id of the job that made an export.

use std::fmt;

use uuid::Uuid;

/// The permanent id of a job, a UUID of version 7. The ids of later jobs sort after those of earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct JobId(Uuid);

impl JobId {
    pub fn random() -> JobId {
        JobId(Uuid::now_v7())
    }

    /// Returns the id in the form that SQL stores.
    pub fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for JobId {
    fn from(id: Uuid) -> JobId {
        JobId(id)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
