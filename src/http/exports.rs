//! `/exports`: list exports, look at one, follow it, acknowledge it, cancel it, remove its file. `submit` takes requests for new exports, `download`
//! answers with a file, `url` with its address.

pub(super) mod download;
pub(super) mod manifest;
pub(super) mod submission;
pub(super) mod submit;
pub(super) mod url;

use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Datelike, Utc};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::dataset::name::is_name;
use crate::http::access::{Caller, CallerSubscriber};
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

/// A client whose event stream broke off asks again after this time.
const RECONNECT: Duration = Duration::from_secs(2);

/// The longest that a request waits for a job's end, in seconds.
const MOST_SECONDS: u64 = 60;

/// The query of `/exports/{jobId}`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct WaitQuery {
    /// Answer when the export has ended, or after this many seconds, 60 at most
    #[param(value_type = Option<u64>, example = 30)]
    wait: Option<String>,
}

/// Look at an export
#[utoipa::path(
    get, path = "/exports/{jobId}", operation_id = "getExport", tag = "exports",
    params(PathJob, WaitQuery), responses((status = 200, description = "The export.", body = JobJson)),
    extensions(("x-codes" = json!([Code::TooManyFollowers]))),
)]
pub(crate) async fn get(
    State(service): State<Service>,
    PathJob(id): PathJob,
    CallerSubscriber(subscriber): CallerSubscriber,
    Query(WaitQuery { wait }): Query<WaitQuery>,
) -> Result<Json<JobJson>, Problem> {
    let job = match wait.map(|text| whole_number(&text)) {
        None => service.job(id).await?,
        Some(Some(seconds)) => {
            service.ended_job(id, Duration::from_secs(seconds.min(MOST_SECONDS)), subscriber).await?
        }
        Some(None) => {
            let why = format!("a number of seconds up to {MOST_SECONDS} is expected");
            return Err(Problem::bad_parameter("wait", why));
        }
    };
    Ok(Json(job.into()))
}

/// Reads a number of digits alone. A number that is too large for the type is the type's largest.
fn whole_number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// An event of the stream.
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
    /// A client whose stream broke off asks again after this many milliseconds
    retry: u64,
}

/// Follow an export by server-sent events
///
/// First `job`, then `progress` at each change, at last `completed`, `failed` or `cancelled`, with which the stream ends. The data of each
/// event is the job. Where the stream ends without one of the last three, the client asks again.
#[utoipa::path(
    get, path = "/exports/{jobId}/events", operation_id = "followExport", tag = "exports",
    params(PathJob),
    responses((status = 200, description = "The events.", body = JobEvent, content_type = "text/event-stream")),
    extensions(("x-codes" = json!([Code::TooManyFollowers]))),
)]
pub(crate) async fn events(
    State(service): State<Service>,
    PathJob(id): PathJob,
    CallerSubscriber(subscriber): CallerSubscriber,
) -> Result<Response, Problem> {
    let jobs = service.follow(id, subscriber).await?.enumerate();
    let events = jobs.flat_map(|(number, job)| {
        let first = (number == 0).then_some("job");
        let end = job.status.is_terminal().then(|| job.status.as_str());
        let then = if number == 0 { end } else { Some(end.unwrap_or("progress")) };
        let body = JobJson::from(job);
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
    /// At most this many; 50 if left out
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Option<String>,
    /// With `consumer`: the exports of that consumer and of `dataset` that were published after this one, oldest first, in the order of their
    /// numbers. `dataset` may be left out where a request may leave it out
    #[param(value_type = Option<Uuid>)]
    after: Option<String>,
    /// The `nextCursor` of the page before
    cursor: Option<String>,
}

/// List exports, newest first
///
/// With `after`, `consumer` and `dataset`: the exports that were published after that one, oldest first. This is how a loader goes on: it
/// gives the id of the export that it loaded last, and loads these in their order.
#[utoipa::path(
    get, path = "/exports", operation_id = "listExports", tag = "exports",
    params(ExportQuery), responses((status = 200, description = "A page.", body = Page<JobJson>)),
    extensions(("x-codes" = json!([Code::NoDataset, Code::DatabaseRestored, Code::ConsumerNotAllowed]))),
)]
pub(crate) async fn list(
    State(service): State<Service>,
    caller: Caller,
    Query(query): Query<ExportQuery>,
) -> Result<Json<Page<JobJson>>, Problem> {
    let limit = pages::limit(query.limit.as_deref())?;
    if query.after.is_some() {
        return published_after(&service, &caller, query, limit).await;
    }
    let filter = Filter {
        consumer: query::word("consumer", query.consumer)?,
        among: caller.consumers().map(<[_]>::to_vec),
        dataset: query.dataset.map(dataset).transpose()?,
        export_type: query::word("exportType", query.export_type)?,
        status: query::word("status", query.status)?,
        before: query.cursor.map(|cursor| read_cursor(&cursor).ok_or_else(pages::bad_cursor)).transpose()?,
    };
    let jobs = service.jobs(&filter, limit + 1).await?;
    Ok(Json(Page::new(jobs, limit, cursor_of, JobJson::from)))
}

/// The exports that were published after one, in the order of their lane.
async fn published_after(
    service: &Service,
    caller: &Caller,
    query: ExportQuery,
    limit: u32,
) -> Result<Json<Page<JobJson>>, Problem> {
    let ExportQuery { consumer, status, export_type, dataset: of, after, cursor, limit: _ } = query;
    let after = after.unwrap_or_default().parse::<Uuid>();
    let after = after.map_err(|_| Problem::bad_parameter("after", "the id of an export is expected"))?;
    for (name, value) in [("status", &status), ("exportType", &export_type)] {
        if value.is_some() {
            return Err(Problem::bad_parameter(name, "beside `after` it would leave out what has to be loaded"));
        }
    }
    let consumer: Option<ConsumerId> = query::word("consumer", consumer)?;
    let Some(consumer) = consumer else {
        return Err(Problem::bad_parameter("after", "it needs `consumer`, whose exports have an order"));
    };
    let dataset = dataset_or_implied(service, of.map(dataset).transpose()?)?;
    // Refused, since a loader would take an empty list for "nothing to load".
    caller.require(Some(&consumer))?;
    let from = cursor.map(|cursor| read_number(&cursor).ok_or_else(pages::bad_cursor)).transpose()?;
    let lane = Lane { consumer: &consumer, dataset: &dataset };
    let jobs = service.published_after(lane, after.into(), from, limit + 1).await?;
    Ok(Json(Page::new(jobs, limit, |job| format!("number_{}", job.number.unwrap_or_default()), JobJson::from)))
}

fn read_number(cursor: &str) -> Option<u64> {
    let digits = cursor.strip_prefix("number_")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Reads a dataset's name. The dataset need not be there any more: its exports are.
fn dataset(name: String) -> Result<String, Problem> {
    let bad = || Problem::bad_parameter("dataset", "the name of a dataset is expected");
    if is_name(&name) { Ok(name) } else { Err(bad()) }
}

/// The cursor after a job: the job's time and id.
fn cursor_of(job: &Job) -> String {
    format!("{}_{}", job.created_at.timestamp_micros(), job.id)
}

fn read_cursor(cursor: &str) -> Option<(DateTime<Utc>, JobId)> {
    let (micros, id) = cursor.split_once('_')?;
    // This type has times before the first that Postgres has.
    let time = DateTime::from_timestamp_micros(micros.parse().ok()?).filter(|time| time.year() > 0)?;
    Some((time, id.parse::<Uuid>().ok()?.into()))
}

/// Remove an export's file
///
/// The job stays. With a key of scope `admin` the call also gives up an export that is committed and whose file has been without its name
/// for a while: the export fails with `file_lost`, and its consumer needs a full export.
#[utoipa::path(
    delete, path = "/exports/{jobId}", operation_id = "deleteExportFile", tag = "exports",
    params(PathJob), responses((status = 204, description = "The export has no file any more.")),
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

/// Say that an export and all before it are loaded
///
/// For the consumer's exports of the dataset, in the order of their numbers: call it when the rows are committed where they were loaded. To
/// acknowledge an export again, or an earlier one than before, changes nothing. Once a consumer has acknowledged an export, retention keeps what
/// it has not acknowledged, for `RETAIN_UNACKED`.
#[utoipa::path(
    post, path = "/exports/{jobId}/ack", operation_id = "acknowledgeExport", tag = "exports",
    params(PathJob), responses((status = 200, description = "The export, which is acknowledged.", body = JobJson)),
    extensions(("x-codes" = json!([Code::NotCompleted, Code::AdHoc]))),
)]
pub(crate) async fn ack(State(service): State<Service>, PathJob(id): PathJob) -> Result<Json<JobJson>, Problem> {
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
    extensions(("x-codes" = json!([Code::Committing, Code::AlreadyEnded]))),
)]
pub(crate) async fn cancel(State(service): State<Service>, PathJob(id): PathJob) -> Result<Response, Problem> {
    let (job, already) = service.cancel(id).await?;
    let status = if already { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(JobJson::from(job))).into_response())
}
