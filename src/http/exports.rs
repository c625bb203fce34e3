//! `/exports`: look at them, follow one, cancel it, remove its file. `submit` takes requests for new ones, `download` answers with a file.

pub(super) mod download;
mod submission;
pub(super) mod submit;

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Datelike, SecondsFormat, Utc};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::dataset::catalog::is_name;
use crate::http::access::{Caller, Follower};
use crate::http::input::PathJob;
use crate::http::openapi::DatasetName;
use crate::http::pages::{self, Page};
use crate::http::problem::{Code, Problem};
use crate::job::encoding::{Compression, Format};
use crate::job::lane::Lane;
use crate::job::{ConsumerId, Continuity, ExportType, FailureCode, Filter, Job, JobId, Status};
use crate::service::{self, Service};

/// A client whose events broke off asks again after this time.
const RECONNECT: Duration = Duration::from_secs(2);

/// A client waits for a job's end this long at most.
const MOST_SECONDS: u64 = 60;

/// The query of `/exports/{jobId}`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct WaitQuery {
    /// Answer when the export has ended, or after so many seconds, 60 at most
    #[param(value_type = Option<u64>, example = 30)]
    wait: Option<String>,
}

/// Look at an export
#[utoipa::path(
    get, path = "/exports/{jobId}", operation_id = "getExport", tag = "exports",
    params(PathJob, WaitQuery), responses((status = 200, description = "The export.", body = JobBody)),
    extensions(("x-codes" = json!([Code::TooManyFollowers]))),
)]
pub(crate) async fn get(
    State(service): State<Service>,
    PathJob(id): PathJob,
    follower: Follower,
    Query(WaitQuery { wait }): Query<WaitQuery>,
) -> Result<Json<JobBody>, Problem> {
    let job = match wait.map(|text| whole_number(&text)) {
        None => service.job(id).await?,
        Some(Some(seconds)) => {
            service.ended_job(id, Duration::from_secs(seconds.min(MOST_SECONDS)), follower.party).await?
        }
        Some(None) => {
            let detail = format!("wait: a number of seconds up to {MOST_SECONDS} is expected");
            return Err(Problem::bad_input(Code::ParameterInvalid, "wait", detail));
        }
    };
    Ok(Json(job.into()))
}

/// Digits alone; a number beyond what fits is the largest that does.
fn whole_number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// An event of a stream.
#[derive(ToSchema)]
#[schema(as = Event)]
#[expect(dead_code, reason = "the document's: axum writes them")]
struct JobEvent {
    /// `job`, `progress`, `completed`, `failed` or `cancelled`
    #[schema(pattern = "^(job|progress|completed|failed|cancelled)$")]
    event: String,
    /// A `Job`
    #[schema(content_media_type = "application/json")]
    data: String,
    /// After so many milliseconds a client whose stream broke off asks again
    retry: u64,
}

/// Follow an export by server-sent events
///
/// `job` as it stands, `progress` at each change, then `completed`, `failed` or `cancelled` and the end of the stream. The data of
/// each is the job. A stream that ends without its end is for the client to ask for again.
#[utoipa::path(
    get, path = "/exports/{jobId}/events", operation_id = "followExport", tag = "exports",
    params(PathJob),
    responses((status = 200, description = "The events.", body = JobEvent, content_type = "text/event-stream")),
    extensions(("x-codes" = json!([Code::TooManyFollowers]))),
)]
pub(crate) async fn events(
    State(service): State<Service>,
    PathJob(id): PathJob,
    follower: Follower,
) -> Result<Response, Problem> {
    let jobs = service.follow(id, follower.party).await?.enumerate();
    let events = jobs.flat_map(|(number, job)| {
        let first = (number == 0).then_some("job");
        let end = job.status.is_terminal().then(|| job.status.as_str());
        let then = if number == 0 { end } else { Some(end.unwrap_or("progress")) };
        let body = JobBody::from(job);
        let event = |name| Event::default().event(name).retry(RECONNECT).json_data(&body);
        let events: Vec<_> = first.into_iter().chain(then).map(event).collect();
        stream::iter(events)
    });
    let events = Sse::new(events).keep_alive(KeepAlive::default());
    // A proxy that buffers would deliver it all at the end.
    let headers = [(header::CACHE_CONTROL, "no-store"), (HeaderName::from_static("x-accel-buffering"), "no")];
    Ok((headers, events).into_response())
}

/// The query of `/exports`.
#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct ExportQuery {
    /// This consumer's
    #[param(value_type = Option<ConsumerId>, example = "search")]
    consumer: Option<String>,
    /// Those that stand so
    #[param(value_type = Option<Status>)]
    status: Option<String>,
    /// Those of this type
    #[param(value_type = Option<ExportType>)]
    export_type: Option<String>,
    /// Those of this dataset
    #[param(value_type = Option<DatasetName>, example = "users")]
    dataset: Option<String>,
    /// So many at most; 50, if that isn't said
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Option<String>,
    /// Those that were published after this one, with `consumer` and `dataset`: oldest first, in the order of their numbers
    #[param(value_type = Option<Uuid>)]
    after: Option<String>,
    /// Go on where a page ended: its `nextCursor`
    cursor: Option<String>,
}

/// List exports, newest first
///
/// With `after`, `consumer` and `dataset`: what was published after that export, oldest first, which is what a loader has to load.
#[utoipa::path(
    get, path = "/exports", operation_id = "listExports", tag = "exports",
    params(ExportQuery), responses((status = 200, description = "A page.", body = Page<JobBody>)),
    extensions(("x-codes" = json!([Code::DatabaseRestored, Code::ConsumerNotAllowed]))),
)]
pub(crate) async fn list(
    State(service): State<Service>,
    caller: Caller,
    Query(query): Query<ExportQuery>,
) -> Result<Json<Page<JobBody>>, Problem> {
    let limit = pages::limit(query.limit.as_deref())?;
    if query.after.is_some() {
        return published_after(&service, &caller, query, limit).await;
    }
    let filter = Filter {
        consumer: word("consumer", query.consumer)?,
        among: caller.consumers().map(<[_]>::to_vec),
        dataset: query.dataset.map(dataset).transpose()?,
        export_type: word("exportType", query.export_type)?,
        status: word("status", query.status)?,
        before: query.cursor.map(|cursor| read_cursor(&cursor).ok_or_else(pages::bad_cursor)).transpose()?,
    };
    let jobs = service.jobs(&filter, limit + 1).await?;
    Ok(Json(Page::new(jobs, limit, cursor_of, JobBody::from)))
}

/// What was published after an export, in its lane's order.
async fn published_after(
    service: &Service,
    caller: &Caller,
    query: ExportQuery,
    limit: u32,
) -> Result<Json<Page<JobBody>>, Problem> {
    let ExportQuery { consumer, status, export_type, dataset: of, after, cursor, limit: _ } = query;
    let bad = |name: &str, why: &str| Problem::bad_input(Code::ParameterInvalid, name, format!("{name}: {why}"));
    let after: Uuid = after.unwrap_or_default().parse().map_err(|_| bad("after", "the id of an export is expected"))?;
    for (name, value) in [("status", &status), ("exportType", &export_type)] {
        if value.is_some() {
            return Err(bad(name, "beside `after` it would leave out what has to be loaded"));
        }
    }
    let consumer: Option<ConsumerId> = word("consumer", consumer)?;
    let (Some(consumer), Some(dataset)) = (consumer, of.map(dataset).transpose()?) else {
        return Err(bad("after", "it needs `consumer` and `dataset`, whose exports have an order"));
    };
    // An empty list would be taken for news.
    caller.require(Some(&consumer))?;
    let from = cursor.map(|cursor| read_number(&cursor).ok_or_else(pages::bad_cursor)).transpose()?;
    let lane = Lane { consumer: &consumer, dataset: &dataset };
    let jobs = service.published_after(lane, after.into(), from, limit + 1).await?;
    Ok(Json(Page::new(jobs, limit, |job| format!("number_{}", job.number.unwrap_or_default()), JobBody::from)))
}

fn read_number(cursor: &str) -> Option<u64> {
    let digits = cursor.strip_prefix("number_")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn word<T: FromStr<Err: Display>>(name: &'static str, text: Option<String>) -> Result<Option<T>, Problem> {
    let bad = |why: T::Err| Problem::bad_input(Code::ParameterInvalid, name, format!("{name}: {why}"));
    text.map(|text| text.parse().map_err(bad)).transpose()
}

/// A name that a dataset may have or have had.
fn dataset(name: String) -> Result<String, Problem> {
    let bad = || Problem::bad_input(Code::ParameterInvalid, "dataset", "dataset: the name of a dataset is expected");
    if is_name(&name) { Ok(name) } else { Err(bad()) }
}

/// A cursor is its job's time and id.
fn cursor_of(job: &Job) -> String {
    format!("{}_{}", job.created_at.timestamp_micros(), job.id)
}

fn read_cursor(cursor: &str) -> Option<(DateTime<Utc>, JobId)> {
    let (micros, id) = cursor.split_once('_')?;
    // Postgres's times begin later than those of this type.
    let time = DateTime::from_timestamp_micros(micros.parse().ok()?).filter(|time| time.year() > 0)?;
    Some((time, id.parse::<Uuid>().ok()?.into()))
}

/// Remove an export's file
///
/// The job stays. A key of scope `admin` also gives up an export that is committed and whose file has had no name for a while: the
/// export fails with `file_lost`, and its consumer needs a full one.
#[utoipa::path(
    delete, path = "/exports/{jobId}", operation_id = "deleteExportFile", tag = "exports",
    params(PathJob), responses((status = 204, description = "It has no file any more.")),
    extensions(("x-codes" = json!([
        Code::StillOpen, Code::FileOfOtherDatabase, Code::FileOnOtherHost, Code::OutputMissing, Code::OutputFailed, Code::StorageFull,
        Code::StorageReadonly,
    ]))),
)]
pub(crate) async fn delete(
    State(service): State<Service>,
    caller: Caller,
    PathJob(id): PathJob,
) -> Result<StatusCode, Problem> {
    match service.remove_file(id).await {
        Err(service::Error::Open(_)) if caller.is_admin() => service.give_up(id).await?,
        removed => removed?,
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Cancel an export
#[utoipa::path(
    post, path = "/exports/{jobId}/cancel", operation_id = "cancelExport", tag = "exports",
    params(PathJob),
    responses(
        (status = 202, description = "It is cancelled, or will be in a moment.", body = JobBody),
        (status = 200, description = "It was cancelled before.", body = JobBody),
    ),
    extensions(("x-codes" = json!([Code::Committing, Code::AlreadyEnded]))),
)]
pub(crate) async fn cancel(State(service): State<Service>, PathJob(id): PathJob) -> Result<Response, Problem> {
    let (job, already) = service.cancel(id).await?;
    let status = if already { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(JobBody::from(job))).into_response())
}

/// A time in JSON: RFC 3339, UTC, microseconds.
pub(crate) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// An export.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Job, example = json!({
    "jobId": "01a1f83b-4327-76af-8511-139e6c6a362d", "consumerId": "search", "dataset": "users", "exportType": "delta",
    "status": "completed", "progress": 100, "rowsExported": 29, "bytesWritten": 3401,
    "outputFilename": "delta_search_20261120T091315Z.csv", "format": "csv", "compression": "none",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "attempt": 1, "error": null, "continuity": null,
    "lateRows": 0, "keyOnlyDeletes": 0, "openTransactions": 0, "oldestTransactionSeconds": null, "schemaChanged": false, "tableRewritten": false,
    "watermarkFrom": "2026-11-20T09:13:10.962731Z", "watermarkTo": "2026-11-20T09:13:15.806135Z", "number": 17, "retryOf": null,
    "createdAt": "2026-11-20T09:13:15.911402Z", "startedAt": "2026-11-20T09:13:15.913370Z",
    "finishedAt": "2026-11-20T09:13:15.958121Z", "durationSeconds": 0.044751
}))]
pub(crate) struct JobBody {
    /// Its id
    #[schema(value_type = Uuid)]
    job_id: String,
    /// Whose it is; null: ad hoc
    #[schema(required)]
    consumer_id: Option<String>,
    /// Which dataset's rows
    dataset: String,
    /// Which of them
    #[schema(value_type = ExportType)]
    export_type: &'static str,
    /// Where it stands
    #[schema(value_type = Status)]
    status: &'static str,
    /// In percent: never back within an attempt, 100 only when completed
    #[schema(maximum = 100)]
    progress: u8,
    /// Rows written so far, all of them once completed
    rows_exported: u64,
    /// Bytes written so far, the file's size once completed
    bytes_written: u64,
    /// The file's name in the output folder
    output_filename: String,
    /// How its rows are written
    #[schema(value_type = Format)]
    format: &'static str,
    /// What that is compressed with
    #[schema(value_type = Compression)]
    compression: &'static str,
    /// The file's SHA-256 in hexadecimal, once completed
    #[schema(required, pattern = "^[0-9a-f]{64}$")]
    sha256: Option<String>,
    /// How many times a worker took it
    attempt: u32,
    /// Why it failed
    #[schema(required)]
    error: Option<FailureBody>,
    /// What stands between the consumer's last export and this one, if not just changes
    #[schema(required, value_type = Option<Continuity>)]
    continuity: Option<&'static str>,
    /// Rows that the timestamps alone would have missed
    late_rows: u64,
    /// Deleted rows of which only the key is known, since they were too large for the log: their other columns are empty, and their key is
    /// right
    key_only_deletes: u64,
    /// Transactions that had changed something and were open: their changes belong to the next export
    #[schema(required)]
    open_transactions: Option<u32>,
    /// The age of the oldest of them in seconds
    #[schema(required)]
    oldest_transaction_seconds: Option<f64>,
    /// Whether the columns are others than those of the consumer's last export
    schema_changed: bool,
    /// Whether the table's rows were written anew since that, as `VACUUM FULL` does
    table_rewritten: bool,
    /// The consumer's watermark before
    #[schema(required, format = DateTime)]
    watermark_from: Option<String>,
    /// The consumer's watermark after
    #[schema(required, format = DateTime)]
    watermark_to: Option<String>,
    /// Its place among the published exports of the consumer in this dataset, from 1 and without gaps; null before that, and for an
    /// ad-hoc export. Their order is this one's, never that of names
    #[schema(required, minimum = 1)]
    number: Option<u64>,
    /// The export that this one was made after, on request
    #[schema(required, value_type = Option<Uuid>)]
    retry_of: Option<String>,
    /// When it was asked for
    #[schema(format = DateTime)]
    created_at: String,
    /// When a worker first took it
    #[schema(required, format = DateTime)]
    started_at: Option<String>,
    /// When it ended
    #[schema(required, format = DateTime)]
    finished_at: Option<String>,
    /// How long it took
    #[schema(required)]
    duration_seconds: Option<f64>,
}

/// Why an export failed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Failure)]
struct FailureBody {
    /// For programs
    #[schema(value_type = FailureCode)]
    code: &'static str,
    /// For people
    detail: String,
}

impl From<Job> for JobBody {
    fn from(job: Job) -> JobBody {
        let duration = job.started_at.zip(job.finished_at).map(|(start, end)| (end - start).as_seconds_f64());
        JobBody {
            job_id: job.id.to_string(),
            consumer_id: job.consumer.map(|consumer| consumer.to_string()),
            dataset: job.dataset,
            export_type: job.export_type.as_str(),
            status: job.status.as_str(),
            progress: job.progress,
            rows_exported: job.rows_exported,
            bytes_written: job.bytes_written,
            output_filename: job.output_filename,
            format: job.encoding.format.as_str(),
            compression: job.encoding.compression.as_str(),
            sha256: job.sha256,
            attempt: job.attempt,
            error: job.error.map(|failure| FailureBody { code: failure.code.as_str(), detail: failure.detail }),
            continuity: job.report.continuity.map(|why| why.as_str()),
            late_rows: job.late_rows,
            key_only_deletes: job.key_only_deletes,
            open_transactions: job.report.open_transactions,
            oldest_transaction_seconds: job.report.oldest_transaction_seconds,
            schema_changed: job.schema_changed,
            table_rewritten: job.report.table_rewritten,
            watermark_from: job.watermark_from.map(rfc3339),
            watermark_to: job.watermark_to.map(rfc3339),
            number: job.number,
            retry_of: job.retry_of.map(|job| job.to_string()),
            created_at: rfc3339(job.created_at),
            started_at: job.started_at.map(rfc3339),
            finished_at: job.finished_at.map(rfc3339),
            duration_seconds: duration,
        }
    }
}
