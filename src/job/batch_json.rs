//! The JSON of a batch, as the API returns it and events contain it.
//!
//! Knows no HTTP. The API's document takes its schema from here.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::job::batch::{Batch, Omitted};
use crate::job::json::JobJson;
use crate::job::{ConsumerId, ExportType, Failure, FailureCode, Job, JobId, Status};

/// A batch: exports of several datasets, read at one snapshot and completed together or not at all.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Batch)]
pub struct BatchJson {
    /// The batch's id, which is that of its first export
    batch_id: Uuid,
    /// The consumer of its exports
    #[schema(value_type = ConsumerId)]
    consumer_id: String,
    /// The type of its exports. One that was healed has the type `full`
    export_type: ExportType,
    /// True if an export that can't go on becomes a full one
    heal: bool,
    /// `completed` when the files of all exports are published
    status: Status,
    /// The mean of its exports' progress in percent: 100 only when completed
    #[schema(maximum = 100)]
    progress: u8,
    /// Rows of all exports so far
    rows_exported: u64,
    /// Bytes of all exports so far
    bytes_written: u64,
    /// Why the batch failed
    #[schema(required)]
    error: Option<BatchFailure>,
    /// The batch that this one repeats, on request
    #[schema(required)]
    retry_of: Option<Uuid>,
    /// Its exports, in the order of their datasets' names
    jobs: Vec<JobJson>,
    /// The datasets that `"*"` did not export
    left_out: Vec<LeftOutJson>,
}

/// Why a batch failed.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchFailure {
    /// The reason as a word, for programs
    code: FailureCode,
    /// The reason as a sentence, for people
    detail: String,
    /// The dataset whose export ended the batch; null if the reason concerns all of them
    #[schema(required)]
    member: Option<String>,
}

impl From<Batch> for BatchJson {
    fn from(batch: Batch) -> BatchJson {
        BatchJson::of_visible(batch, |_| true)
    }
}

impl BatchJson {
    /// Returns the batch without the datasets that its reader may not see. The status is that of the whole batch.
    pub fn of_visible(batch: Batch, may_see: impl Fn(&str) -> bool) -> BatchJson {
        let (status, error) = (batch.status(), failure_of(&batch.jobs, &may_see));
        let Batch { id, mut jobs, mut request } = batch;
        let consumer_id = jobs[0].consumer.as_ref().map(ConsumerId::to_string).unwrap_or_default();
        jobs.retain(|job| may_see(&job.dataset));
        request.left_out.retain(|omitted| may_see(&omitted.dataset));
        // Retention may have removed all visible exports of a batch whose event is delivered again.
        let progress = jobs.iter().map(|job| usize::from(job.progress)).sum::<usize>().checked_div(jobs.len());
        BatchJson {
            batch_id: id.as_uuid(),
            consumer_id,
            export_type: request.export_type,
            heal: request.heals,
            status,
            progress: progress.unwrap_or_default() as u8,
            rows_exported: jobs.iter().map(|job| job.rows_exported).sum(),
            bytes_written: jobs.iter().map(|job| job.bytes_written).sum(),
            error,
            retry_of: request.retry_of.map(JobId::as_uuid),
            jobs: jobs.into_iter().map(JobJson::from).collect(),
            left_out: request.left_out.into_iter().map(LeftOutJson::from).collect(),
        }
    }
}

/// Returns the failure of the export that ended the batch, without its name and its reason if the reader may not see
/// its dataset.
fn failure_of(jobs: &[Job], may_see: impl Fn(&str) -> bool) -> Option<BatchFailure> {
    let failed = |job: &&Job| job.error.as_ref().is_some_and(|error| error.code != FailureCode::BatchMemberFailed);
    let causes: Vec<&Job> = jobs.iter().filter(failed).collect();
    if causes.is_empty() {
        return None;
    }
    let Some(cause) = causes.iter().find(|job| may_see(&job.dataset)) else {
        let detail = "another member of the batch failed".to_owned();
        return Some(BatchFailure { code: FailureCode::BatchMemberFailed, detail, member: None });
    };
    let Failure { code, detail, .. } = cause.error.clone()?;
    Some(BatchFailure { code, detail, member: (causes.len() < jobs.len()).then(|| cause.dataset.clone()) })
}

/// A dataset that `"*"` does not export.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LeftOut)]
pub struct LeftOutJson {
    /// Its name
    dataset: String,
    /// The reason as a word, as `GET /datasets` has it
    reason: String,
}

impl From<Omitted> for LeftOutJson {
    fn from(Omitted { dataset, reason }: Omitted) -> LeftOutJson {
        LeftOutJson { dataset, reason }
    }
}
