//! A job: one export that a consumer asked for, from the request to its file.
//!
//! Knows the words and the transitions between them; must not know HTTP, SQL or files.

pub mod after;
pub mod columns;
mod continuity;
mod idempotency_key;
pub mod json;
pub mod lane;
pub mod marker;
mod progress;
pub mod selection;

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::job::lane::Lane;
use crate::job::selection::Selection;
use crate::trace::TraceParent;
use pg_rows::encoding::Encoding;

pub use after::After;
pub use continuity::{Continuity, SnapshotReport};
pub use idempotency_key::IdempotencyKey;
pub use progress::{Progress, Reached};

/// Names a job for ever. Ids of later jobs sort after those of earlier ones (UUID version 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobId(Uuid);

impl JobId {
    /// An id that nothing else has.
    pub fn random() -> JobId {
        JobId(Uuid::now_v7())
    }

    /// The id as SQL stores it.
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

/// The right to write one attempt of one job: random, fresh at every claim, so that a worker that lost its lease can't
/// pass for the one that has it. (A sequence could be handed out again after a failover to a lagging standby.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseToken(Uuid);

impl LeaseToken {
    /// A token that nobody else has.
    pub fn random() -> LeaseToken {
        LeaseToken(Uuid::new_v4())
    }

    /// The token as SQL stores it.
    pub fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for LeaseToken {
    fn from(token: Uuid) -> LeaseToken {
        LeaseToken(token)
    }
}

/// Why a text is no consumer id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a consumer id has 1 to 128 characters of A-Z a-z 0-9 . _ : @ - and begins with a letter or digit")]
pub struct BadConsumerId;

/// The receiver of an export. 1 to 128 characters of `A-Z a-z 0-9 . _ : @ -`, beginning with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConsumerId(String);

impl ConsumerId {
    /// The id as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ConsumerId {
    type Err = BadConsumerId;

    fn from_str(text: &str) -> Result<ConsumerId, BadConsumerId> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:@-".contains(c);
        let begins_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if begins_well && text.len() <= 128 && text.chars().all(allowed) {
            Ok(ConsumerId(text.to_owned()))
        } else {
            Err(BadConsumerId)
        }
    }
}

impl fmt::Display for ConsumerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pg_rows::words! {
    /// Which rows an export holds.
    ExportType, "an export type: full, incremental, delta" {
        /// Every live row.
        Full = "full",
        /// The live rows changed since the consumer's watermark.
        Incremental = "incremental",
        /// The rows changed since, deleted ones too, each with its operation.
        Delta = "delta",
    }
}

pg_rows::words! {
    /// The status of a job. The transitions are [`Status::can_become`]; the table `exports` checks them again.
    Status, "a status: pending, processing, completed, failed, cancelled" {
        /// Waits for a worker, or for its turn in the lane.
        Pending = "pending",
        /// A worker holds its lease.
        Processing = "processing",
        /// Committed: the file is whole, the watermark moved with it.
        Completed = "completed",
        /// Ended without a file; the watermark is where it was, but after `file_lost`.
        Failed = "failed",
        /// Ended on request; the watermark is where it was.
        Cancelled = "cancelled",
    }
}

impl Status {
    /// The transition table. A completed job is [`Processing`](Status::Processing) to everybody until its file has its
    /// name, and may still become failed if that is lost: the one step that the table `exports` allows beside these.
    pub fn can_become(self, next: Status) -> bool {
        use Status::{Cancelled, Completed, Failed, Pending, Processing};
        matches!(
            (self, next),
            (Pending, Processing | Cancelled) | (Processing, Pending | Completed | Failed | Cancelled)
        )
    }

    /// Returns true if the status is final.
    pub fn is_terminal(self) -> bool {
        !self.can_become(Status::Cancelled)
    }
}

pg_rows::words! {
    /// Why a job failed, as a stable word. The texts beside it may change, these don't.
    FailureCode, "a failure code" {
        /// The changes since the last export are not known exactly; a full export heals it. `continuity` has the
        /// reason.
        FullExportNeeded = "full_export_needed",
        /// No room in the output folder or bucket, or over a quota.
        StorageFull = "storage_full",
        /// The output folder or bucket can't be written.
        StorageReadonly = "storage_readonly",
        /// The output folder or bucket isn't there, or isn't one.
        OutputMissing = "output_missing",
        /// The object store didn't answer in time, or was too busy.
        StorageUnavailable = "storage_unavailable",
        /// More than the object store takes in parts of `OUTPUT_PART_SIZE`.
        FileTooLarge = "file_too_large",
        /// Postgres could not be reached, or broke off.
        SourceUnavailable = "source_unavailable",
        /// The table to export doesn't exist.
        TableMissing = "table_missing",
        /// Nobody ran `cdc-export track` for the dataset, or not since it has another key.
        NotTracked = "not_tracked",
        /// The table isn't as its dataset says; the detail names what to mend.
        DatasetMismatch = "dataset_mismatch",
        /// The database role may not read the table, or lacks a right to what the service has in the database; the
        /// detail names it.
        PermissionDenied = "permission_denied",
        /// A text that isn't UTF-8; the detail names the column.
        InvalidText = "invalid_text",
        /// A value beyond `CELL_MAX_BYTES`; the detail names the column.
        RowTooLarge = "row_too_large",
        /// A value that Postgres itself could not read: its type's code fails, or it is damaged. The detail has
        /// Postgres's own code.
        ValueUnreadable = "value_unreadable",
        /// A value that the format has no form for; the detail names the column and the value.
        NotInFormat = "not_in_format",
        /// The file was removed after the commit, before it had its name. The watermark has moved: only a full export
        /// goes on.
        FileLost = "file_lost",
        /// Somebody changed the consumer's watermark while the export ran, each time.
        WatermarkChanged = "watermark_changed",
        /// Its workers vanished, each of the attempts it had.
        AttemptsExhausted = "attempts_exhausted",
        /// A defect of the service; its log has the cause.
        Internal = "internal",
    }
}

/// The bounds of `max_file_bytes`: an export must not become a crowd of files, and S3 takes no larger file in one
/// piece.
pub const FILE_BYTES: RangeInclusive<u64> = 16 << 20..=5 << 30;

/// A request for an export.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// `None`: an ad-hoc export, which reads and moves no watermark.
    pub consumer: Option<ConsumerId>,
    /// The dataset.
    pub dataset: String,
    /// Which rows.
    pub export_type: ExportType,
    /// Which of those, and what of them: for ad-hoc exports.
    pub selection: Selection,
    /// The form in which the rows are written.
    pub encoding: Encoding,
    /// A file of so many bytes or more gets no further rows: they go into another one. `None`: as the dataset says, or
    /// one file.
    pub max_file_bytes: Option<u64>,
    /// The export that the caller loaded last, if it says so.
    pub after: Option<After>,
    /// The job that this one is to be like.
    pub retry_of: Option<JobId>,
    /// The client's name for this request: sent again, it makes no second job.
    pub key: Option<IdempotencyKey>,
    /// The place of the request in a trace.
    pub trace: Option<TraceParent>,
}

impl Request {
    /// A request for whole rows in one file, from a caller that says no more than this.
    pub fn new(consumer: Option<ConsumerId>, dataset: String, export_type: ExportType, encoding: Encoding) -> Request {
        Request {
            consumer,
            dataset,
            export_type,
            selection: Selection::default(),
            encoding,
            max_file_bytes: None,
            after: None,
            retry_of: None,
            key: None,
            trace: None,
        }
    }

    /// The request that a job was made of, but for its key and its place in a trace.
    pub fn of(job: &Job) -> Request {
        Request {
            consumer: job.consumer.clone(),
            dataset: job.dataset.clone(),
            export_type: job.export_type,
            selection: job.selection.clone(),
            encoding: job.encoding,
            max_file_bytes: job.max_file_bytes,
            after: job.after.clone(),
            retry_of: job.retry_of,
            key: None,
            trace: None,
        }
    }

    /// Returns true if a job is what this request asks for.
    pub fn asks_for(&self, job: &Job) -> bool {
        Request { key: None, trace: None, ..self.clone() } == Request::of(job)
    }
}

/// A job as everybody sees it.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name for ever.
    pub id: JobId,
    /// `None`: an ad-hoc export.
    pub consumer: Option<ConsumerId>,
    /// Which dataset's rows.
    pub dataset: String,
    /// Which rows of it.
    pub export_type: ExportType,
    /// Which of those, and what of them.
    pub selection: Selection,
    /// The form in which the rows are written.
    pub encoding: Encoding,
    /// A file of so many bytes or more gets no further rows. `None`: as the dataset says, or one file.
    pub max_file_bytes: Option<u64>,
    /// The status. [`Status::Processing`] also while a committed file waits for its name.
    pub status: Status,
    /// 0 to 100; 100 only when completed.
    pub progress: u8,
    /// Rows written so far, all of them once completed.
    pub rows_exported: u64,
    /// Bytes written so far, the size of all files once completed.
    pub bytes_written: u64,
    /// The file's name in the output folder or bucket; the names of several are made of it.
    pub output_filename: String,
    /// The files, in the order of their parts; empty until the job is completed.
    pub files: Vec<JobFile>,
    /// What the export before it in its lane, and this one, are: the digest of its manifest. `None`: it isn't
    /// published, ad hoc, or by a version that made no manifests.
    pub digest: Option<String>,
    /// The number of times that a worker claimed it.
    pub attempt: u32,
    /// Why it failed.
    pub error: Option<Failure>,
    /// The findings of the export when it began.
    pub report: SnapshotReport,
    /// Rows that the timestamps alone would have missed: changed, but with a time up to the watermark, or gone.
    pub late_rows: u64,
    /// Deleted rows of which a column is empty because its value is not known: the log has no image of the row, or the
    /// column is a virtual generated one.
    pub key_only_deletes: u64,
    /// The columns of its file are others than those of its consumer's last export, or of other types.
    pub schema_changed: bool,
    /// The consumer's watermark that the export began at.
    pub watermark_from: Option<DateTime<Utc>>,
    /// The consumer's watermark that the export left.
    pub watermark_to: Option<DateTime<Utc>>,
    /// Its place among the published exports of its consumer and dataset, from 1; `None` until it is published, and for
    /// an ad-hoc one.
    pub number: Option<u64>,
    /// True if its consumer has acknowledged it, or one after it; `None` until it is published, for an ad-hoc one, and
    /// where the consumer has never acknowledged one of its lane.
    pub acknowledged: Option<bool>,
    /// The export that its caller had loaded last, if it said so. For an incremental or a delta that was right.
    pub after: Option<After>,
    /// The job that this one was made after, on request.
    pub retry_of: Option<JobId>,
    /// Its place in a trace: that of the first request for it, else of the first attempt that was recorded.
    pub trace: Option<TraceParent>,
    /// Before when it isn't tried again, while it waits for that.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// When somebody first asked to cancel it.
    pub cancel_requested_at: Option<DateTime<Utc>>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When a worker first took it.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

impl Job {
    /// The job's file, where it has one alone.
    pub fn only_file(&self) -> Option<&JobFile> {
        if let [only] = self.files.as_slice() { Some(only) } else { None }
    }

    /// The job's lane; `None`: an ad-hoc export has none.
    pub fn lane(&self) -> Option<Lane<'_>> {
        self.consumer.as_ref().map(|consumer| Lane { consumer, dataset: &self.dataset })
    }
}

/// A file of a completed job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFile {
    /// Its name.
    pub name: String,
    /// The URL of the file. `None`: an earlier version published it, which saved none.
    pub location: Option<String>,
    /// Its size.
    pub bytes: u64,
    /// Its rows.
    pub rows: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

/// Why a job failed: a stable word for programs, a sentence for people.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The guard's verdict, if that is the reason.
    pub continuity: Option<Continuity>,
    /// The word.
    pub code: FailureCode,
    /// The sentence.
    pub detail: String,
}

/// Which jobs to list. What is `None` lets everything through.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The consumer.
    pub consumer: Option<ConsumerId>,
    /// The consumers, one of whom has the job.
    pub among: Option<Vec<ConsumerId>>,
    /// The dataset.
    pub dataset: Option<String>,
    /// The type of the export.
    pub export_type: Option<ExportType>,
    /// Jobs of this status, as clients see it.
    pub status: Option<Status>,
    /// Older than the job that was made at this time and has this id.
    pub before: Option<(DateTime<Utc>, JobId)>,
}

/// The jobs that are kept after their end. `None` keeps everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Jobs that ended longer ago are removed.
    pub age: Option<Duration>,
    /// The number of the newest jobs of each consumer that are kept.
    pub count: Option<u64>,
}

/// The limits for a new job.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The most attempts.
    pub max_attempts: u32,
    /// The most jobs that may be open, of all consumers together.
    pub max_open: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_states_are_final() {
        let all = [Status::Pending, Status::Processing, Status::Completed, Status::Failed, Status::Cancelled];
        for from in all.into_iter().filter(|s| s.is_terminal()) {
            assert!(all.iter().all(|to| !from.can_become(*to)), "{from}");
        }
        assert!(!Status::Pending.is_terminal() && !Status::Processing.is_terminal());
        assert!(!Status::Pending.can_become(Status::Completed), "nothing completes without a lease");
    }
}
