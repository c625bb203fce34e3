//! A job: what one request asked for, of one dataset or several. An export is the part of a job for one dataset, from
//! the request to its files.
//!
//! This module defines the statuses and their transitions. It must not know HTTP, SQL or files.

pub mod activity;
mod bounds;
pub mod datasets;
pub mod json;
pub mod times;
pub mod unacknowledged;

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use cdc_capture::{Continuity, ExportReport, RowRequest};
use chrono::{DateTime, Utc};
use pg_rows::export_type::ExportType;
use uuid::Uuid;

use crate::job::datasets::DatasetsRequest;
use crate::trace::TraceParent;
use cdc_dataset::Selection;
use cdc_manifest::{After, ConsumerId, JobId, Lane};
use pg_rows::encoding::Encoding;

pub use bounds::Bounds;

/// The token of a lease: the right to run one attempt of one job.
///
/// Each claim generates a random token, so that a worker without the lease can't write in the name of its holder. A
/// sequence is not safe: after a failover to a lagging standby, it could return the same number again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseToken(Uuid);

impl LeaseToken {
    pub fn random() -> LeaseToken {
        LeaseToken(Uuid::new_v4())
    }

    /// Returns the token in the form that SQL stores.
    pub fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for LeaseToken {
    fn from(token: Uuid) -> LeaseToken {
        LeaseToken(token)
    }
}

pg_rows::words! {
    /// The status of a job or an export. The transitions are [`Status::can_become`]; the tables check them again.
    Status, "a status:" {
        /// The job waits for a worker, or for an earlier job of its lane.
        Pending = "pending",
        /// A worker holds the lease of the job.
        Processing = "processing",
        /// The job is committed: the file is complete, and the watermark moved with it.
        Completed = "completed",
        /// The job was to skip empty exports, and found nothing. The position moved, and there is no file. Lists and
        /// events name this status. The job itself shows `completed`, with `skipped`.
        Skipped = "skipped",
        /// The job ended without a file. The watermark is unchanged, except after `file_lost`.
        Failed = "failed",
        /// The job ended on request. The watermark is unchanged.
        Cancelled = "cancelled",
    }
}

impl Status {
    /// Returns true if the transition table allows this transition.
    ///
    /// Clients see a committed export as [`Processing`](Status::Processing) until its file is published. A committed
    /// export whose file is lost becomes failed. The table `exports` allows only this one transition in addition.
    pub fn can_become(self, next: Status) -> bool {
        use Status::{Cancelled, Completed, Failed, Pending, Processing, Skipped};
        matches!(
            (self, next),
            (Pending, Processing | Failed | Cancelled)
                | (Processing, Pending | Completed | Skipped | Failed | Cancelled)
        )
    }

    pub fn is_terminal(self) -> bool {
        !self.can_become(Status::Cancelled)
    }

    /// Returns the status that clients see: a skipped job is completed.
    pub fn shown(self) -> Status {
        if self == Status::Skipped { Status::Completed } else { self }
    }

    /// Returns the status of a job whose exports have these statuses. A job has ended when all of its exports have.
    pub fn of_job(exports: impl Iterator<Item = Status> + Clone) -> Status {
        use Status::{Cancelled, Completed, Failed, Pending, Processing, Skipped};
        let any = |status| exports.clone().any(|export| export == status);
        if exports.clone().all(Status::is_terminal) {
            return [Failed, Cancelled, Completed].into_iter().find(|end| any(*end)).unwrap_or(Skipped);
        }
        if exports.clone().all(|export| export == Pending) { Pending } else { Processing }
    }
}

pg_rows::words! {
    /// The phase of an open job.
    Phase, "a phase:" {
        /// The job waits for a worker, for an earlier job of its lane, or for its next attempt.
        Waiting = "waiting",
        /// Postgres looks for the rows. None has been written.
        Reading = "reading",
        /// Rows are written.
        Writing = "writing",
        /// The job is committed, and its files get their names.
        Publishing = "publishing",
    }
}

pg_rows::words! {
    /// The reason why a job failed, as a stable code. The text next to the code may change between versions.
    FailureCode, "a failure code" {
        /// The changes since the last export are not known exactly. Request a full export. `continuity` has the reason.
        FullExportNeeded = "full_export_needed",
        /// The output folder or bucket is full, or a quota is exceeded.
        StorageFull = "storage_full",
        /// The service can't write to the output folder or bucket.
        StorageReadonly = "storage_readonly",
        /// The output folder or bucket doesn't exist, or isn't a folder or bucket.
        OutputMissing = "output_missing",
        /// The object store did not respond in time, or was too busy.
        StorageUnavailable = "storage_unavailable",
        /// The file has more parts of `OUTPUT_PART_SIZE` than the object store allows.
        FileTooLarge = "file_too_large",
        /// The service could not connect to Postgres, or the connection broke. Or a lock or a foreign server was in the
        /// way, which the detail names.
        SourceUnavailable = "source_unavailable",
        /// Other sessions waited for a lock that the export prevents, in each of six attempts. The detail names the
        /// last one.
        GaveWay = "gave_way",
        /// The export needs more than half of the free places in Postgres's lock table. The detail has the numbers.
        TooManyLocks = "too_many_locks",
        /// The table to export doesn't exist.
        TableMissing = "table_missing",
        /// The job waited, and no process has its dataset any more.
        DatasetUnknown = "dataset_unknown",
        /// Nobody ran `cdc-export track` for the dataset, or its key changed since.
        NotTracked = "not_tracked",
        /// The dataset has no capture since the export was requested, so it has full exports alone.
        FullOnly = "full_only",
        /// The table does not match its dataset. The detail names what to correct.
        DatasetMismatch = "dataset_mismatch",
        /// The database role may not read the table, or lacks a right on the service's own objects in the database.
        /// The detail names it.
        PermissionDenied = "permission_denied",
        /// A text is not valid UTF-8. The detail names the column.
        InvalidText = "invalid_text",
        /// A value is larger than `CELL_MAX_BYTES`. The detail names the column.
        RowTooLarge = "row_too_large",
        /// Postgres could not read or compute a value: the code of its type or an expression of a view failed, or the
        /// value is damaged. The detail has Postgres's error code.
        ValueUnreadable = "value_unreadable",
        /// The format can't represent a value. The detail names the column and the value.
        NotInFormat = "not_in_format",
        /// The file was removed after the commit and before it was published. The watermark has moved, so the consumer
        /// needs a full export.
        FileLost = "file_lost",
        /// The export was committed over a minute ago, and its files have no names yet. The job is still open.
        NotPublished = "not_published",
        /// Somebody changed the consumer's watermark during each attempt.
        WatermarkChanged = "watermark_changed",
        /// The export of a dataset ended the job that the caller may not see.
        OtherDatasetFailed = "other_dataset_failed",
        /// The worker vanished in each of the allowed attempts.
        AttemptsExhausted = "attempts_exhausted",
        /// The service has a defect. Its log has the cause.
        Internal = "internal",
    }
}

/// Returns the detail of [`FailureCode::NotPublished`], with the remedy.
pub fn not_published(job: JobId) -> String {
    format!(
        "the export is committed, and its files have no names yet: bring their folder or bucket back, writable; if it is gone for good, \
         DELETE /exports/{job} with the scope admin gives the job up, and its consumer needs a full export"
    )
}

/// The bounds of `max_file_bytes`. The lower bound limits the number of files; the upper bound is the largest object
/// that S3 accepts in one request.
pub const FILE_BYTES: RangeInclusive<u64> = 16 << 20..=5 << 30;

/// An idempotency key: the client's id of a request, 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdempotencyKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<IdempotencyKey, &'static str> {
        let good = (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if good { Ok(IdempotencyKey(text.to_owned())) } else { Err("not 1 to 255 visible ASCII characters") }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// `None` for an ad-hoc export, which neither reads nor moves a watermark.
    pub consumer: Option<ConsumerId>,
    pub dataset: String,
    pub export_type: ExportType,
    pub selection: Selection,
    pub encoding: Encoding,
    /// The size at which a file is full, so that further rows go into the next file. `None` uses the dataset's size, or
    /// one file if the dataset has none.
    pub max_file_bytes: Option<u64>,
    /// True to make no file if an incremental export or a delta finds nothing. `None` uses the dataset's choice.
    pub skip_empty: Option<bool>,
    /// True if a full export is made where only one goes on.
    pub heals: bool,
    /// The export that the caller loaded last, if the caller sent it.
    pub after: Option<After>,
    pub retry_of: Option<JobId>,
    /// The client's idempotency key. A second request with the same key creates no second job.
    pub key: Option<IdempotencyKey>,
    pub trace: Option<TraceParent>,
}

impl Request {
    pub fn new(consumer: Option<ConsumerId>, dataset: String, export_type: ExportType, encoding: Encoding) -> Request {
        Request {
            consumer,
            dataset,
            export_type,
            selection: Selection::default(),
            encoding,
            max_file_bytes: None,
            skip_empty: None,
            heals: false,
            after: None,
            retry_of: None,
            key: None,
            trace: None,
        }
    }

    /// Rebuilds the request of an export, without its idempotency key and its trace context.
    pub fn from_export(export: &Export) -> Request {
        Request {
            consumer: export.consumer.clone(),
            dataset: export.dataset.clone(),
            export_type: export.export_type,
            selection: export.selection.clone(),
            encoding: export.encoding,
            max_file_bytes: export.max_file_bytes,
            skip_empty: export.skip_empty,
            heals: export.heals,
            after: export.after.clone(),
            retry_of: export.retry_of,
            key: None,
            trace: None,
        }
    }

    /// Returns true if this request would create a job like this one. `datasets` is the request with `datasets` that
    /// this one is the first part of, if it is.
    pub fn asks_for(&self, datasets: Option<&DatasetsRequest>, job: &Job) -> bool {
        match (datasets, &job.datasets) {
            (Some(asked), Some(before)) => asked.request == before.request && self.retry_of == job.first().retry_of,
            (None, None) => Request { key: None, trace: None, ..self.clone() } == Request::from_export(job.first()),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}

/// An export in the state that clients see, with what it has of its job.
#[derive(Clone, Debug)]
pub struct Export {
    pub job: JobId,
    /// True if the job's request had `datasets`.
    pub is_of_datasets: bool,
    /// `None` for an ad-hoc export.
    pub consumer: Option<ConsumerId>,
    pub dataset: String,
    pub export_type: ExportType,
    pub selection: Selection,
    pub encoding: Encoding,
    /// The size at which a file is full. `None` uses the dataset's size, or one file if the dataset has none.
    pub max_file_bytes: Option<u64>,
    /// True to make no file if the export finds nothing. `None` uses the dataset's choice.
    pub skip_empty: Option<bool>,
    /// True if a full export is made where only one goes on.
    pub heals: bool,
    /// The status. It is [`Status::Processing`] until the files of a committed export are published.
    pub status: Status,
    /// The progress, 0 to 100. It is 100 only if the export is completed.
    pub progress: u8,
    /// The phase of an open export. `None` if the export has ended.
    pub phase: Option<Phase>,
    /// The number of rows written so far, or of all rows if the export is completed.
    pub rows_exported: u64,
    /// The number of rows that a running export of changes expects. `None` if they were not counted.
    pub rows_expected: Option<u64>,
    /// The number of bytes written so far, or the size of all files if the export is completed.
    pub bytes_written: u64,
    /// The file's name in the output folder or bucket. The names of several files are derived from it.
    pub output_filename: String,
    /// The files, in the order of their parts. Empty until the export is completed.
    pub files: Vec<ExportFile>,
    /// The digest of the export's manifest, which covers the digest of the previous export of the lane. `None` if the
    /// export is not published or is ad hoc.
    pub digest: Option<String>,
    /// The number of times that a worker claimed the job.
    pub attempt: u32,
    /// The job's error, if the export is open or failed.
    pub error: Option<Failure>,
    pub report: ExportReport,
    pub watermark_from: Option<DateTime<Utc>>,
    pub watermark_to: Option<DateTime<Utc>>,
    /// The place of the export in its lane, which grows along the lane and may have gaps. `None` for an ad-hoc export.
    pub order: Option<i64>,
    /// The export's number among the published exports of its lane, from 1. `None` if the export is not published or is
    /// ad hoc.
    pub number: Option<u64>,
    /// True if the consumer has acknowledged this export or a later one. `None` if the export is not published, is ad
    /// hoc, or if the consumer has never acknowledged an export of the lane.
    pub acknowledged: Option<bool>,
    /// The export that the caller had loaded last, if the caller sent it. It was verified for an incremental export and
    /// a delta.
    pub after: Option<After>,
    pub retry_of: Option<JobId>,
    /// The trace context of the first request, or else of the first recorded attempt.
    pub trace: Option<TraceParent>,
    /// The earliest time of the next attempt, while the job waits for it.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// The time of the first request to cancel the job.
    pub cancel_requested_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    /// The time of the first claim by a worker.
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
}

impl Export {
    /// Returns the rows and columns that the export requests.
    pub fn row_request(&self) -> RowRequest<'_> {
        let Export { export_type, selection, order, .. } = self;
        RowRequest { job: self.job.as_uuid(), export_type: *export_type, selection, order: *order }
    }

    pub fn only_file(&self) -> Option<&ExportFile> {
        if let [only] = self.files.as_slice() { Some(only) } else { None }
    }

    /// Returns `None` for an ad-hoc export.
    pub fn lane(&self) -> Option<Lane<'_>> {
        self.consumer.as_ref().map(|consumer| Lane { consumer, dataset: &self.dataset })
    }
}

#[derive(Clone, Debug)]
pub struct Job {
    /// The request, if it had `datasets`. `None` if it was for one dataset.
    pub datasets: Option<DatasetsRequest>,
    /// The exports, in the order of their datasets' names. There is one at least.
    pub exports: Vec<Export>,
}

impl Job {
    pub fn first(&self) -> &Export {
        &self.exports[0]
    }

    pub fn id(&self) -> JobId {
        self.first().job
    }

    pub fn consumer(&self) -> Option<&ConsumerId> {
        self.first().consumer.as_ref()
    }

    /// Returns the type of export that the request asked for. An export that was healed has another one.
    pub fn export_type(&self) -> ExportType {
        self.datasets.as_ref().map_or(self.first().export_type, |asked| asked.export_type)
    }

    pub fn status(&self) -> Status {
        Status::of_job(self.exports.iter().map(|export| export.status))
    }

    pub fn error(&self) -> Option<&Failure> {
        self.exports.iter().find_map(|export| export.error.as_ref())
    }

    /// Returns the job as if it had only the datasets for which `may_see` is true. `None` if it has none of them.
    pub fn within(mut self, may_see: impl Fn(&str) -> bool) -> Option<Job> {
        self.exports.retain(|export| may_see(&export.dataset));
        for export in &mut self.exports {
            let is_hidden = |failure: &Failure| failure.dataset.as_ref().is_some_and(|dataset| !may_see(dataset));
            if export.error.as_ref().is_some_and(is_hidden) {
                let detail = "the export of another dataset ended the job".to_owned();
                let code = FailureCode::OtherDatasetFailed;
                export.error = Some(Failure { continuity: None, code, detail, dataset: None });
            }
        }
        if let Some(asked) = &mut self.datasets {
            asked.datasets.retain(|dataset| may_see(dataset));
            asked.left_out.retain(|omitted| may_see(&omitted.dataset));
        }
        (!self.exports.is_empty()).then_some(self)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportFile {
    pub name: String,
    /// The URL of the file. `None` if the file is not published.
    pub location: Option<String>,
    pub bytes: u64,
    pub rows: u64,
    /// The SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// The reason why a job failed: a stable code for programs, a sentence for people.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The guard's verdict, if that is the reason.
    pub continuity: Option<Continuity>,
    pub code: FailureCode,
    pub detail: String,
    /// The dataset whose export failed. `None` if the failure concerns all exports of the job.
    pub dataset: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct JobPage {
    pub jobs: Vec<Job>,
    /// True if there may be more jobs: a page of jobs with many exports has fewer.
    pub has_more: bool,
}

/// The filter of a list of jobs. A field with `None` does not restrict the list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub consumer: Option<ConsumerId>,
    pub dataset: Option<String>,
    pub export_type: Option<ExportType>,
    /// Selects jobs with this status, as clients see it.
    pub status: Option<Status>,
    pub before: Option<JobId>,
}

/// The limits for ended jobs that are kept. A field with `None` sets no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The age since its end at which a job is removed.
    pub age: Option<Duration>,
    /// The number of the newest jobs of each lane that are kept.
    pub count: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub max_attempts: u32,
    /// The largest number of open jobs of all consumers together.
    pub max_open: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_ended_when_each_of_its_exports_has() {
        use Status::{Cancelled, Completed, Failed, Pending, Processing, Skipped};
        for (exports, job) in [
            ([Pending, Pending], Pending),
            ([Processing, Completed], Processing),
            ([Processing, Failed], Processing),
            ([Completed, Skipped], Completed),
            ([Skipped, Skipped], Skipped),
            ([Completed, Failed], Failed),
            ([Cancelled, Cancelled], Cancelled),
        ] {
            assert_eq!(Status::of_job(exports.into_iter()), job, "{exports:?}");
        }
    }

    #[test]
    fn terminal_states_are_final() {
        let all = [Status::Pending, Status::Processing, Status::Completed, Status::Failed, Status::Cancelled];
        for from in all.into_iter().filter(|s| s.is_terminal()) {
            assert!(all.iter().all(|to| !from.can_become(*to)), "{from}");
        }
        assert!(!Status::Pending.is_terminal() && !Status::Processing.is_terminal());
        assert!(!Status::Pending.can_become(Status::Completed), "a job without a lease can't complete");
    }
}
