//! A batch: one consumer's exports of several datasets, which are read at one snapshot and completed together or not at
//! all.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::job::{ExportType, Job, JobId, Status};

/// The largest number of datasets of a batch.
pub const MOST_MEMBERS: usize = 1_000;

/// The request for a batch, apart from the requests for its members.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchRequest {
    /// The members of the request's body, as the client sent them, and the datasets that `"*"` stood for at most. A
    /// repetition must have the same.
    pub request: Value,
    /// The type of the exports. A member that was healed has another one.
    pub export_type: ExportType,
    /// True if a member that needs a full export becomes one.
    pub heals: bool,
    /// The datasets of all members. Some of the jobs may be removed before the others.
    pub members: Vec<String>,
    /// The datasets that `"*"` does not export.
    pub left_out: Vec<Omitted>,
    /// The batch that this one repeats on request.
    pub retry_of: Option<JobId>,
}

/// A dataset that `"*"` does not export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Omitted {
    pub dataset: String,
    /// The reason, a word.
    pub reason: String,
}

/// A batch in the state that clients see.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The permanent id: that of the first member.
    pub id: JobId,
    /// The members, in the order of their datasets' names. There is one at least.
    pub jobs: Vec<Job>,
    pub request: BatchRequest,
}

impl BatchRequest {
    pub fn is_repeated_by(&self, other: &BatchRequest) -> bool {
        self.request == other.request && self.retry_of == other.retry_of
    }
}

impl Batch {
    /// Returns the status of the whole. A batch is completed when the files of all members are published.
    pub fn status(&self) -> Status {
        let any = |status| self.jobs.iter().any(|job| job.status == status);
        if self.jobs.iter().all(|job| job.status.is_terminal()) {
            let ends = [Status::Failed, Status::Cancelled];
            return ends.into_iter().find(|end| any(*end)).unwrap_or(Status::Completed);
        }
        if self.jobs.iter().all(|job| job.status == Status::Pending) { Status::Pending } else { Status::Processing }
    }

    /// Returns the first member that has not ended.
    pub fn open_member(&self) -> Option<&Job> {
        self.jobs.iter().find(|job| !job.status.is_terminal())
    }
}
