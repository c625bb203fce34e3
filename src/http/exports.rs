//! `/exports`: lists, gets, follows, acknowledges and cancels exports, and removes their files. `submit` accepts
//! requests for new exports. `download` serves files, and `url` returns a file's address.

pub(super) mod download;
pub(super) mod manifest;
pub(super) mod submission;
pub(super) mod submit;
pub(super) mod url;

use std::time::Duration;

use axum::Json;
use axum::extract::Query;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Datelike, Utc};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::dataset::name::is_name;
use crate::http::access::{Caller, RequestSubscriber};
use crate::http::code::Code;
use crate::http::input::{PathJob, dataset_or_implied};
use crate::http::pages::{self, Page};
use crate::http::problem::Problem;
use crate::http::query;
use crate::http::schemas::DatasetName;
use crate::job::json::JobJson;
use crate::job::lane::Lane;
use crate::job::{ConsumerId, ExportType, Filter, Job, JobId, Status};
use crate::service::{self, Service};

/// Time after which a client reconnects to an interrupted event stream.
const RECONNECT: Duration = Duration::from_secs(2);

/// Maximum time that a request waits for the end of a job, in seconds.
const MAX_WAIT_SECONDS: u64 = 60;

/// The query of `/exports/{jobId}` and of `/batches/{batchId}`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct WaitQuery {
    /// Respond when the export or the batch has ended, or after this many seconds, at most 60
    #[param(value_type = Option<u64>, example = 30)]
    wait: Option<String>,
}

/// Get an export
#[utoipa::path(
    get, path = "/exports/{jobId}", operation_id = "getExport", tag = "exports",
    params(PathJob, WaitQuery), responses((status = 200, description = "The export.", body = JobJson)),
    extensions(("x-codes" = json!([Code::TooManyFollowers]))),
)]
pub(crate) async fn get(
    service: Service,
    PathJob(id): PathJob,
    RequestSubscriber(subscriber): RequestSubscriber,
    Query(query): Query<WaitQuery>,
) -> Result<Json<JobJson>, Problem> {
    let job = match wait_of(query)? {
        None => service.job(id).await?,
        Some(wait) => service.ended_job(id, wait, subscriber).await?,
    };
    Ok(Json(job.into()))
}

pub(crate) fn wait_of(WaitQuery { wait }: WaitQuery) -> Result<Option<Duration>, Problem> {
    match wait.map(|text| whole_number(&text)) {
        None => Ok(None),
        Some(Some(seconds)) => Ok(Some(Duration::from_secs(seconds.min(MAX_WAIT_SECONDS)))),
        Some(None) => {
            let why = format!("a number of seconds up to {MAX_WAIT_SECONDS} is expected");
            Err(Problem::bad_parameter("wait", why))
        }
    }
}

/// Parses a number that consists of digits only. A number too large for the type becomes the type's maximum.
fn whole_number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// An event of the stream.
#[derive(ToSchema)]
#[schema(as = Event)]
#[expect(dead_code, reason = "only the API's document uses it: axum writes the events")]
struct JobEvent {
    /// `job`, `progress`, `completed`, `failed` or `cancelled`
    #[schema(pattern = "^(job|progress|completed|failed|cancelled)$")]
    event: String,
    /// A `Job`
    #[schema(content_media_type = "application/json")]
    data: String,
    /// The time in milliseconds after which a client reconnects to an interrupted stream
    retry: u64,
}

/// Follow an export by server-sent events
///
/// The first event is `job`. A `progress` event follows each change. The last event is `completed`, `failed` or
/// `cancelled`, and then the stream ends. The data of each event is the job. If the stream ends without one of the last
/// three, the client reconnects.
#[utoipa::path(
    get, path = "/exports/{jobId}/events", operation_id = "followExport", tag = "exports",
    params(PathJob),
    responses((status = 200, description = "The events.", body = JobEvent, content_type = "text/event-stream")),
    extensions(("x-codes" = json!([Code::TooManyFollowers]))),
)]
pub(crate) async fn events(
    service: Service,
    PathJob(id): PathJob,
    RequestSubscriber(subscriber): RequestSubscriber,
) -> Result<Response, Problem> {
    let jobs = service.follow(id, subscriber).await?.enumerate();
    let events = jobs.flat_map(|(number, job)| {
        let first = (number == 0).then_some("job");
        let end = job.status.is_terminal().then(|| job.shown_status().as_str());
        let then = if number == 0 { end } else { Some(end.unwrap_or("progress")) };
        let body = JobJson::from(job);
        let event = |name| Event::default().event(name).retry(RECONNECT).json_data(&body);
        let events: Vec<_> = first.into_iter().chain(then).map(event).collect();
        stream::iter(events)
    });
    let events = Sse::new(events).keep_alive(KeepAlive::default());
    // A buffering proxy would deliver all events at the end of the stream.
    let headers = [(header::CACHE_CONTROL, "no-store"), (HeaderName::from_static("x-accel-buffering"), "no")];
    Ok((headers, events).into_response())
}

/// The query of `/exports`.
#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct ExportQuery {
    /// Exports of this consumer
    #[param(value_type = Option<ConsumerId>, example = "search")]
    consumer: Option<String>,
    /// Exports with this status
    #[param(value_type = Option<Status>)]
    status: Option<String>,
    /// Exports of this type
    #[param(value_type = Option<ExportType>)]
    export_type: Option<String>,
    /// Exports of this dataset
    #[param(value_type = Option<DatasetName>, example = "users")]
    dataset: Option<String>,
    /// Maximum number of items; the default is 50
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Option<String>,
    /// With `consumer`: the exports of that consumer and of `dataset` that were published after this one, oldest first.
    /// They are in the order of their numbers. `dataset` is optional in the same cases as in a request for an export
    #[param(value_type = Option<Uuid>)]
    after: Option<String>,
    /// The `nextCursor` of the previous page
    cursor: Option<String>,
}

/// List exports, newest first
///
/// With `after`, `consumer` and `dataset`: the exports that were published after that one, oldest first. A loader
/// continues in this way: it passes the id of the export that it loaded last, and loads the returned exports in order.
#[utoipa::path(
    get, path = "/exports", operation_id = "listExports", tag = "exports",
    params(ExportQuery), responses((status = 200, description = "A page.", body = Page<JobJson>)),
    extensions(("x-codes" = json!([Code::NoDataset, Code::DatabaseRestored, Code::ConsumerNotAllowed, Code::DatasetNotAllowed]))),
)]
pub(crate) async fn list(service: Service, Query(query): Query<ExportQuery>) -> Result<Json<Page<JobJson>>, Problem> {
    let limit = pages::limit(query.limit.as_deref())?;
    if query.after.is_some() {
        return published_after(&service, query, limit).await;
    }
    let filter = Filter {
        consumer: query::word("consumer", query.consumer)?,
        dataset: query.dataset.map(dataset).transpose()?,
        export_type: query::word("exportType", query.export_type)?,
        status: query::word("status", query.status)?,
        before: query.cursor.map(|cursor| read_cursor(&cursor).ok_or_else(pages::bad_cursor)).transpose()?,
    };
    let jobs = service.jobs(&filter, limit + 1).await?;
    Ok(Json(Page::new(jobs, limit, cursor_of, JobJson::from)))
}

/// Returns the exports published after a given one, in the order of their lane.
async fn published_after(service: &Service, query: ExportQuery, limit: u32) -> Result<Json<Page<JobJson>>, Problem> {
    let ExportQuery { consumer, status, export_type, dataset: of, after, cursor, limit: _ } = query;
    let after = after.unwrap_or_default().parse::<Uuid>();
    let after = after.map_err(|_| Problem::bad_parameter("after", "the id of an export is expected"))?;
    for (name, value) in [("status", &status), ("exportType", &export_type)] {
        if value.is_some() {
            return Err(Problem::bad_parameter(
                name,
                "not allowed with `after`, because it would omit exports that must be loaded",
            ));
        }
    }
    let consumer: Option<ConsumerId> = query::word("consumer", consumer)?;
    let Some(consumer) = consumer else {
        return Err(Problem::bad_parameter(
            "after",
            "`consumer` is required, because only a consumer's exports are ordered",
        ));
    };
    let dataset = dataset_or_implied(service, of.map(dataset).transpose()?)?;
    // An empty list would mean "nothing to load" to a loader, so the call is refused instead.
    service.require_consumer(Some(&consumer))?;
    let from = cursor.map(|cursor| read_number(&cursor).ok_or_else(pages::bad_cursor)).transpose()?;
    let lane = Lane { consumer: &consumer, dataset: &dataset };
    let jobs = service.published_after(lane, after.into(), from, limit + 1).await?;
    Ok(Json(Page::new(jobs, limit, |job| format!("number_{}", job.number.unwrap_or_default()), JobJson::from)))
}

fn read_number(cursor: &str) -> Option<u64> {
    let digits = cursor.strip_prefix("number_")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Validates the name of a dataset. The dataset may be missing from the catalog, because its exports are kept.
pub(crate) fn dataset(name: String) -> Result<String, Problem> {
    let bad = || Problem::bad_parameter("dataset", "the name of a dataset is expected");
    if is_name(&name) { Ok(name) } else { Err(bad()) }
}

/// Returns the cursor of a job: its creation time and id.
fn cursor_of(job: &Job) -> String {
    format!("{}_{}", job.created_at.timestamp_micros(), job.id)
}

fn read_cursor(cursor: &str) -> Option<(DateTime<Utc>, JobId)> {
    let (micros, id) = cursor.split_once('_')?;
    // `DateTime` can represent times before the earliest one in Postgres.
    let time = DateTime::from_timestamp_micros(micros.parse().ok()?).filter(|time| time.year() > 0)?;
    Some((time, id.parse::<Uuid>().ok()?.into()))
}

/// Remove an export's file
///
/// The job is kept. With a key of scope `admin`, the call can also give up an export that is committed but whose file
/// has not been published for a while. Then the export fails with `file_lost`, and its consumer needs a full export.
#[utoipa::path(
    delete, path = "/exports/{jobId}", operation_id = "deleteExportFile", tag = "exports",
    params(PathJob), responses((status = 204, description = "The export no longer has a file.")),
    extensions(("x-codes" = json!([
        Code::StillOpen, Code::FileOfOtherDatabase, Code::FileOnOtherHost, Code::OutputMissing, Code::OutputFailed, Code::StorageFull,
        Code::StorageReadonly,
    ]))),
)]
pub(crate) async fn delete(service: Service, caller: Caller, PathJob(id): PathJob) -> Result<StatusCode, Problem> {
    match service.remove_file(id).await {
        Err(service::Error::Open(_)) if caller.is_admin() => service.give_up(id).await?,
        removed => removed?,
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Acknowledge an export and all before it
///
/// Call this after you have committed the loaded rows. It acknowledges the consumer's exports of the dataset, in the
/// order of their numbers. To acknowledge an export again, or an earlier one, has no effect. After a consumer's first
/// acknowledgment, retention keeps unacknowledged exports for `RETAIN_UNACKED`.
#[utoipa::path(
    post, path = "/exports/{jobId}/ack", operation_id = "acknowledgeExport", tag = "exports",
    params(PathJob), responses((status = 200, description = "The acknowledged export.", body = JobJson)),
    extensions(("x-codes" = json!([Code::NotCompleted, Code::NoFile, Code::AdHoc]))),
)]
pub(crate) async fn ack(service: Service, PathJob(id): PathJob) -> Result<Json<JobJson>, Problem> {
    Ok(Json(service.acknowledge(id).await?.into()))
}

/// Cancel an export
#[utoipa::path(
    post, path = "/exports/{jobId}/cancel", operation_id = "cancelExport", tag = "exports",
    params(PathJob),
    responses(
        (status = 202, description = "The export is cancelled, or will be in a moment.", body = JobJson),
        (status = 200, description = "The export was cancelled before.", body = JobJson),
    ),
    extensions(("x-codes" = json!([Code::BatchMember, Code::Committing, Code::AlreadyEnded]))),
)]
pub(crate) async fn cancel(service: Service, PathJob(id): PathJob) -> Result<Response, Problem> {
    let (job, already) = service.cancel(id).await?;
    let status = if already { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(JobJson::from(job))).into_response())
}
