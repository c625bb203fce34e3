//! The JSON of a job, as the API returns it and events contain it.
//!
//! Knows no HTTP. The API's document takes its schema from here.

use std::borrow::Cow;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::openapi::{Object, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use crate::job::datasets::Omitted;
use crate::job::{Export, ExportFile, Failure, FailureCode, Job, Phase, Status};
use cdc_capture::Continuity;
use cdc_manifest::{ConsumerId, JobId};
use pg_rows::export_type::ExportType;

/// Formats a time for JSON: RFC 3339, UTC, microseconds.
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Schema type of a file's format, which is an enum of another crate.
pub enum FormatSchema {}

/// The schema of a consumer's id.
pub enum ConsumerSchema {}

/// The schema of an export's type.
pub enum ExportTypeSchema {}

/// The schema of a word of continuity.
pub enum ContinuitySchema {}

/// Schema type of a file's compression, which is an enum of another crate.
pub enum CompressionSchema {}

/// A job in the form of its request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = AnyJob)]
pub enum AnyJobJson {
    /// The request was for one dataset
    One(Box<JobJson>),
    /// The request had `datasets`
    Several(JobOfDatasetsJson),
}

impl From<Job> for AnyJobJson {
    fn from(mut job: Job) -> AnyJobJson {
        match job.datasets {
            None => AnyJobJson::One(Box::new(job.exports.remove(0).into())),
            Some(_) => AnyJobJson::Several(job.into()),
        }
    }
}

/// A job of one export.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Job, example = json!({
    "jobId": "01a1f83b-4327-76af-8511-139e6c6a362d", "consumerId": "search", "dataset": "users", "exportType": "delta",
    "status": "completed", "skipped": false, "progress": 100, "phase": null, "rowsExported": 29, "rowsExpected": null, "bytesWritten": 3401,
    "outputFilename": "delta_search_20261120T091315Z.csv", "location": "file:///srv/exports/delta_search_20261120T091315Z.csv", "format": "csv", "compression": "none",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "files": [{
        "part": 1, "name": "delta_search_20261120T091315Z.csv", "location": "file:///srv/exports/delta_search_20261120T091315Z.csv",
        "bytes": 3401, "rows": 29, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    }], "maxFileBytes": null, "digest": "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9",
    "attempt": 1, "error": null, "continuity": null,
    "lateRows": 0, "quietDeletes": 0, "openTransactions": 0, "oldestTransactionSeconds": null, "schemaChanged": false, "tableRewritten": false,
    "watermarkFrom": "2026-11-20T09:13:10.962731Z", "watermarkTo": "2026-11-20T09:13:15.806135Z", "number": 17, "order": 18, "acknowledged": true, "retryOf": null,
    "nextAttemptAt": null, "cancelRequestedAt": null,
    "createdAt": "2026-11-20T09:13:15.911402Z", "startedAt": "2026-11-20T09:13:15.913370Z",
    "finishedAt": "2026-11-20T09:13:15.958121Z", "durationSeconds": 0.044751
}))]
pub struct JobJson {
    /// The job's id
    job_id: Uuid,
    /// The consumer's id; null: an ad-hoc export
    #[schema(required)]
    consumer_id: Option<String>,
    /// The dataset's name
    dataset: String,
    /// The type of the export, which says which rows the file has
    #[schema(value_type = ExportTypeSchema)]
    export_type: ExportType,
    /// The job's status; `completed` also if it was skipped
    status: Status,
    /// True if the export found nothing, and was to make no file then: it has no file, number, digest or manifest
    skipped: bool,
    /// In percent: it never falls within an attempt, and is 100 only when completed
    #[schema(maximum = 100)]
    progress: u8,
    /// The work that goes on: `waiting` for a worker or its turn, `reading` until the first row is written, `writing`,
    /// or `publishing` once it is committed; null once the export has ended
    #[schema(required)]
    phase: Option<Phase>,
    /// Rows written so far, all of them once completed
    rows_exported: u64,
    /// About how many rows there will be, in an export of changes that has run for five seconds; null if they were not
    /// counted, and once the export is committed
    #[schema(required)]
    rows_expected: Option<u64>,
    /// Bytes written so far, the size of all files once completed
    bytes_written: u64,
    /// The file's name in the output folder or bucket, and of a download; the names of several are made of it; null if
    /// the export was skipped
    #[schema(required)]
    output_filename: Option<String>,
    /// The location of the file: `file:///…`, `s3://…`, `gs://…` or `az://…`; null until the job is completed, and if
    /// there are several
    location: Option<String>,
    /// The format of its files
    #[schema(value_type = FormatSchema)]
    format: &'static str,
    /// The compression of its files
    #[schema(value_type = CompressionSchema)]
    compression: &'static str,
    /// The file's SHA-256 in hexadecimal, once completed; null if there are several files
    #[schema(required, pattern = "^[0-9a-f]{64}$")]
    sha256: Option<String>,
    /// The files once the job is completed, in the order of their parts: one, unless the export was split by
    /// `maxFileBytes`
    files: Vec<FileJson>,
    /// The size in bytes at which a file ends and the next one begins, if the request has one
    #[schema(required)]
    max_file_bytes: Option<u64>,
    /// The digest of the export's manifest, which names the one before it in the same way; null before the export is
    /// published, and for an ad-hoc export
    #[schema(required, pattern = "^[0-9a-f]{64}$")]
    digest: Option<String>,
    /// The number of times that a worker has claimed the job
    attempt: u32,
    /// Why the export failed
    #[schema(required)]
    error: Option<FailureJson>,
    /// The condition, other than changes, between the consumer's last export and this one
    #[schema(required)]
    #[schema(value_type = Option<ContinuitySchema>)]
    continuity: Option<Continuity>,
    /// Rows that the timestamps alone would have missed
    late_rows: u64,
    /// Rows that were deleted since the consumer's last export by transactions which kept them out of it
    /// (`cdc_export.quiet`)
    quiet_deletes: u64,
    /// Transactions that had changed something and were still open: their changes belong to the next export
    #[schema(required)]
    open_transactions: Option<u32>,
    /// The age of the oldest of the `openTransactions`, in seconds; null if the role may not see it
    #[schema(required)]
    oldest_transaction_seconds: Option<f64>,
    /// True if the columns differ from those of the consumer's last export
    schema_changed: bool,
    /// True if the table was rewritten since the consumer's last export, for example by `VACUUM FULL`
    table_rewritten: bool,
    /// The consumer's watermark before the export
    #[schema(required, format = DateTime)]
    watermark_from: Option<String>,
    /// The consumer's watermark after the export
    #[schema(required, format = DateTime)]
    watermark_to: Option<String>,
    /// The export's place among the published exports of its consumer and dataset, from 1 and without gaps; null before
    /// the export is published, and for an ad-hoc export. Load exports in the order of their numbers, never of their
    /// names
    #[schema(required, minimum = 1)]
    number: Option<u64>,
    /// The export's place in its lane, which grows along the lane and may have gaps; the rows have it in `_order`. Null
    /// where `number` is
    #[schema(required, minimum = 1)]
    order: Option<i64>,
    /// True if the consumer has acknowledged this export or a later one; null before the export is published, for an
    /// ad-hoc export, and if the consumer has never acknowledged one in the dataset
    #[schema(required)]
    acknowledged: Option<bool>,
    /// The job that this one repeats, on request
    #[schema(required)]
    retry_of: Option<Uuid>,
    /// When the job is tried again at the earliest, while it waits for that
    #[schema(required, format = DateTime)]
    next_attempt_at: Option<String>,
    /// When somebody first asked to cancel the job: an open one ends as soon as its worker hears of it
    #[schema(required, format = DateTime)]
    cancel_requested_at: Option<String>,
    /// When the job was asked for
    #[schema(format = DateTime)]
    created_at: String,
    /// When a worker first claimed the job
    #[schema(required, format = DateTime)]
    started_at: Option<String>,
    /// When the job ended
    #[schema(required, format = DateTime)]
    finished_at: Option<String>,
    /// The duration of the job, in seconds
    #[schema(required)]
    duration_seconds: Option<f64>,
}

/// A file of an export.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = File)]
struct FileJson {
    /// Its number among the export's files, from 1
    #[schema(minimum = 1)]
    part: usize,
    /// Its name in the output folder, and of a download
    name: String,
    /// The location of the file; null if it is not known
    #[schema(required)]
    location: Option<String>,
    /// Its size
    bytes: u64,
    /// Its rows
    rows: u64,
    /// Its SHA-256 in hexadecimal
    #[schema(pattern = "^[0-9a-f]{64}$")]
    sha256: String,
}

/// Why an export failed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Failure)]
struct FailureJson {
    /// The reason as a word, for programs
    code: FailureCode,
    /// The reason as a sentence, for people
    detail: String,
    /// The dataset whose export ended the job, if the job's request had `datasets`; else it is not there
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    dataset: Option<String>,
}

impl From<Export> for JobJson {
    fn from(job: Export) -> JobJson {
        let only = job.only_file().cloned();
        let is_skipped = job.status == Status::Skipped;
        let file = |(part, ExportFile { name, location, bytes, rows, sha256 })| FileJson {
            part,
            name,
            location,
            bytes,
            rows,
            sha256,
        };
        JobJson {
            job_id: job.job.as_uuid(),
            consumer_id: job.consumer.map(|consumer| consumer.to_string()),
            dataset: job.dataset,
            export_type: job.export_type,
            status: job.status.shown(),
            skipped: is_skipped,
            progress: job.progress,
            phase: job.phase,
            rows_exported: job.rows_exported,
            rows_expected: job.rows_expected,
            bytes_written: job.bytes_written,
            output_filename: Some(job.output_filename).filter(|_| !is_skipped),
            location: only.as_ref().and_then(|file| file.location.clone()),
            format: job.encoding.format.as_str(),
            compression: job.encoding.compression.as_str(),
            sha256: only.map(|file| file.sha256),
            files: (1..).zip(job.files).map(file).collect(),
            max_file_bytes: job.max_file_bytes,
            digest: job.digest,
            attempt: job.attempt,
            error: job.error.map(|Failure { code, detail, dataset, .. }| FailureJson {
                code,
                detail,
                dataset: dataset.filter(|_| job.is_of_datasets),
            }),
            continuity: job.report.continuity,
            late_rows: job.report.late_rows,
            quiet_deletes: job.report.quiet_deletes,
            open_transactions: job.report.open_transactions,
            oldest_transaction_seconds: job.report.oldest_transaction_seconds,
            schema_changed: job.report.schema_changed,
            table_rewritten: job.report.table_rewritten,
            watermark_from: job.watermark_from.map(rfc3339),
            watermark_to: job.watermark_to.map(rfc3339),
            number: job.number,
            order: job.order.filter(|_| job.number.is_some()),
            acknowledged: job.acknowledged,
            retry_of: job.retry_of.map(JobId::as_uuid),
            next_attempt_at: job.next_attempt_at.map(rfc3339),
            cancel_requested_at: job.cancel_requested_at.map(rfc3339),
            created_at: rfc3339(job.created_at),
            started_at: job.started_at.map(rfc3339),
            finished_at: job.finished_at.map(rfc3339),
            duration_seconds: job.started_at.zip(job.finished_at).map(|(start, end)| (end - start).as_seconds_f64()),
        }
    }
}

/// The place of a [`JobJson`] member in the JSON of a job of several datasets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Job,
    Export,
    /// The job has that of all its exports together.
    Both,
}

impl Place {
    fn has(self, member: &str) -> bool {
        let place = match member {
            "jobId" | "consumerId" | "status" | "progress" | "format" | "compression" | "maxFileBytes" | "attempt"
            | "error" | "retryOf" | "nextAttemptAt" | "cancelRequestedAt" | "createdAt" | "startedAt"
            | "finishedAt" | "durationSeconds" => Place::Job,
            "exportType" | "skipped" | "rowsExported" | "bytesWritten" => Place::Both,
            _ => Place::Export,
        };
        place == self || place == Place::Both
    }

    fn members_of(self, export: Export) -> Map<String, Value> {
        let mut members = object(JobJson::from(export));
        members.retain(|name, _| self.has(name));
        members
    }

    fn schema(self) -> Object {
        let mut schema = object_schema::<JobJson>();
        schema.properties.retain(|name, _| self.has(name));
        schema.required.retain(|name| self.has(name));
        schema.example = None;
        schema
    }
}

fn object(json: impl Serialize) -> Map<String, Value> {
    let Ok(Value::Object(members)) = serde_json::to_value(json) else { unreachable!("a struct is an object") };
    members
}

fn object_schema<T: PartialSchema>() -> Object {
    let RefOr::T(Schema::Object(schema)) = T::schema() else { unreachable!("a struct is an object") };
    schema
}

/// An export of a job whose request had `datasets`.
#[derive(Debug, Serialize)]
struct ExportJson(Map<String, Value>);

impl ToSchema for ExportJson {
    fn name() -> Cow<'static, str> {
        "Export".into()
    }
}

impl PartialSchema for ExportJson {
    fn schema() -> RefOr<Schema> {
        let mut schema = Place::Export.schema();
        schema.description = Some("An export of a job whose request had `datasets`.".to_owned());
        schema.into()
    }
}

/// A job whose request had `datasets`: some members of a [`JobJson`], and [`DatasetsMembers`].
#[derive(Debug, Serialize)]
pub struct JobOfDatasetsJson(Map<String, Value>);

impl ToSchema for JobOfDatasetsJson {
    fn name() -> Cow<'static, str> {
        "JobOfDatasets".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        DatasetsMembers::schemas(schemas);
    }
}

impl PartialSchema for JobOfDatasetsJson {
    fn schema() -> RefOr<Schema> {
        let (mut schema, own) = (Place::Job.schema(), object_schema::<DatasetsMembers>());
        schema.required.retain(|name| !own.required.contains(name));
        schema.required.extend(own.required);
        schema.properties.extend(own.properties);
        schema.description = own.description;
        schema.into()
    }
}

/// A job whose request had `datasets`: its exports are read at one snapshot, and completed together or not at all. Its
/// type is that of its exports, except for healed ones, which are full. Its rows and bytes are those of all exports,
/// and its progress is their mean. It is skipped if each of them is.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct DatasetsMembers {
    /// The consumer of its exports
    #[schema(value_type = ConsumerSchema)]
    consumer_id: String,
    /// True if an export that can't go on becomes a full one
    heal: bool,
    /// Why the job failed
    #[schema(required)]
    error: Option<DatasetFailureJson>,
    /// Its exports, in the order of their datasets' names
    exports: Vec<ExportJson>,
    /// The datasets that `"*"` did not export
    left_out: Vec<Omitted>,
}

/// Why a job whose request had `datasets` failed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DatasetFailure)]
struct DatasetFailureJson {
    /// The reason as a word, for programs
    code: FailureCode,
    /// The reason as a sentence, for people
    detail: String,
    /// The dataset whose export ended the job; null if the reason concerns all of them. With `file_lost`, its file is
    /// lost, and the other exports are completed
    #[schema(required)]
    dataset: Option<String>,
}

impl From<Job> for JobOfDatasetsJson {
    fn from(job: Job) -> JobOfDatasetsJson {
        let (status, export_type, error) = (job.status(), job.export_type(), job.error().cloned());
        let Job { datasets, exports } = job;
        let finished_at = exports.iter().map(|export| export.finished_at).max().flatten();
        let progress = exports.iter().map(|export| usize::from(export.progress)).sum::<usize>() / exports.len();
        let whole = Export {
            export_type,
            status,
            progress: progress as u8,
            rows_exported: exports.iter().map(|export| export.rows_exported).sum(),
            bytes_written: exports.iter().map(|export| export.bytes_written).sum(),
            finished_at: finished_at.filter(|_| status.is_terminal()),
            ..exports[0].clone()
        };
        let own = DatasetsMembers {
            consumer_id: whole.consumer.as_ref().map(ConsumerId::to_string).unwrap_or_default(),
            heal: whole.heals,
            error: error.map(|Failure { code, detail, dataset, .. }| DatasetFailureJson { code, detail, dataset }),
            exports: exports.into_iter().map(|export| ExportJson(Place::Export.members_of(export))).collect(),
            left_out: datasets.into_iter().flat_map(|asked| asked.left_out).collect(),
        };
        let mut members = Place::Job.members_of(whole);
        members.extend(object(own));
        JobOfDatasetsJson(members)
    }
}
