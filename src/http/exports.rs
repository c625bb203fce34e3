//! `/exports`: lists, gets, follows, acknowledges and cancels jobs, and removes the files of their exports. `submit`
//! accepts requests for new jobs. `download` serves files, and `url` returns a file's address.

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
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::http::access::{Caller, RequestSubscriber};
use crate::http::code::Code;
use crate::http::input::{PathExport, PathJob, dataset, dataset_or_implied};
use crate::http::pages::{self, Page};
use crate::http::problem::Problem;
use crate::http::query;
use crate::http::schemas::DatasetName;
use crate::job::json::{AnyJobJson, ConsumerSchema, ExportTypeSchema};
use crate::job::{Export, Filter, JobPage, Status};
use crate::service::{self, Cancellation, Service};
use cdc_manifest::{ConsumerId, JobId, Lane};

/// Time after which a client reconnects to an interrupted event stream.
const RECONNECT: Duration = Duration::from_secs(2);

/// Maximum time that a request waits for the end of a job, in seconds.
const MAX_WAIT_SECONDS: u64 = 60;

/// The query of `/exports/{jobId}`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct WaitQuery {
    /// Respond when the job has ended, or after this many seconds, at most 60
    #[param(value_type = Option<u64>, example = 30)]
    wait: Option<String>,
}

/// Get a job
///
/// A job whose request had `datasets` lists its exports in `exports`.
#[utoipa::path(
    get, path = "/exports/{jobId}", operation_id = "getExport", tag = "exports",
    params(PathJob, WaitQuery), responses((status = 200, description = "The job.", body = AnyJobJson)),
    extensions(("x-codes" = json!([Code::TooManyFollowers]))),
)]
pub(crate) async fn get(
    service: Service,
    PathJob(id): PathJob,
    RequestSubscriber(subscriber): RequestSubscriber,
    Query(query): Query<WaitQuery>,
) -> Result<Json<AnyJobJson>, Problem> {
    let job = match query.wait.map(|text| wait_of(&text)).transpose()? {
        None => service.job(id).await?,
        Some(wait) => service.ended_job(id, wait, subscriber).await?,
    };
    Ok(Json(job.into()))
}

/// Parses a number of seconds. A larger one than the maximum, or than the type can hold, becomes the maximum.
fn wait_of(text: &str) -> Result<Duration, Problem> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        let why = format!("a number of seconds up to {MAX_WAIT_SECONDS} is expected");
        return Err(Problem::bad_parameter("wait", why));
    }
    Ok(Duration::from_secs(text.parse().unwrap_or(MAX_WAIT_SECONDS).min(MAX_WAIT_SECONDS)))
}

/// An event of the stream.
#[derive(ToSchema)]
#[schema(as = Event)]
#[expect(dead_code, reason = "only the API's document uses it: axum writes the events")]
struct JobEvent {
    /// `job`, `progress`, `completed`, `failed` or `cancelled`
    #[schema(pattern = "^(job|progress|completed|failed|cancelled)$")]
    event: String,
    /// A `Job`, or a `JobOfDatasets` if the request had `datasets`
    #[schema(content_media_type = "application/json")]
    data: String,
    /// The time in milliseconds after which a client reconnects to an interrupted stream
    retry: u64,
}

/// Follow a job by server-sent events
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
        let status = job.status();
        let end = status.is_terminal().then(|| status.shown().as_str());
        let then = if number == 0 { end } else { Some(end.unwrap_or("progress")) };
        let body = AnyJobJson::from(job);
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
    /// Jobs of this consumer
    #[param(value_type = Option<ConsumerSchema>, example = "search")]
    consumer: Option<String>,
    /// Jobs with this status. With `dataset`, or with a key for certain datasets, the status is that of the export of
    /// the dataset
    #[param(value_type = Option<Status>)]
    status: Option<String>,
    /// Jobs of this type. With `dataset`, or with a key for certain datasets, the type is that of the export of the
    /// dataset
    #[param(value_type = Option<ExportTypeSchema>)]
    export_type: Option<String>,
    /// Jobs that have an export of this dataset
    #[param(value_type = Option<DatasetName>, example = "users")]
    dataset: Option<String>,
    /// Maximum number of items; the default is 50
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Option<String>,
    /// With `consumer`: the exports of that consumer and of `dataset` that were published after the one of this job.
    /// They are in the order of their numbers. `dataset` is optional in the same cases as in a request for an export
    #[param(value_type = Option<Uuid>)]
    after: Option<String>,
    /// The `nextCursor` of the previous page
    cursor: Option<String>,
}

/// List jobs, newest first
///
/// With `after`, `consumer` and `dataset`: the exports that were published after that one, oldest first. Each has the
/// form of a job of one dataset, with the id of its job. A loader continues in this way: it passes the id of the job
/// that it loaded last, and loads the returned exports in order.
#[utoipa::path(
    get, path = "/exports", operation_id = "listExports", tag = "exports",
    params(ExportQuery), responses((status = 200, description = "A page.", body = Page<AnyJobJson>)),
    extensions(("x-codes" = json!([Code::NoDataset, Code::DatabaseRestored, Code::ConsumerNotAllowed, Code::DatasetNotAllowed]))),
)]
pub(crate) async fn list(
    service: Service,
    Query(query): Query<ExportQuery>,
) -> Result<Json<Page<AnyJobJson>>, Problem> {
    let limit = pages::limit(query.limit.as_deref())?;
    if query.after.is_some() {
        return published_after(&service, query, limit).await;
    }
    let before = query.cursor.map(|cursor| cursor.parse::<Uuid>().map_err(|_| pages::bad_cursor())).transpose()?;
    let filter = Filter {
        consumer: query::word("consumer", query.consumer)?,
        dataset: query.dataset.map(dataset).transpose()?,
        export_type: query::word("exportType", query.export_type)?,
        status: query::word("status", query.status)?,
        before: before.map(JobId::from),
    };
    let JobPage { jobs, has_more } = service.jobs(&filter, limit).await?;
    let next_cursor = jobs.last().filter(|_| has_more).map(|last| last.id().to_string());
    Ok(Json(Page { items: jobs.into_iter().map(AnyJobJson::from).collect(), next_cursor }))
}

async fn published_after(service: &Service, query: ExportQuery, limit: u32) -> Result<Json<Page<AnyJobJson>>, Problem> {
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
    let dataset = dataset_or_implied(service, of.map(dataset).transpose()?, Problem::bad_parameter)?;
    // An empty list would mean "nothing to load" to a loader, so the call is refused instead.
    service.require_consumer(Some(&consumer))?;
    let from = cursor.map(|cursor| read_number(&cursor).ok_or_else(pages::bad_cursor)).transpose()?;
    let lane = Lane { consumer: &consumer, dataset: &dataset };
    let exports = service.published_after(lane, after.into(), from, limit + 1).await?;
    let cursor = |export: &Export| format!("number_{}", export.number.unwrap_or_default());
    let body = |export: Export| AnyJobJson::One(Box::new(export.into()));
    Ok(Json(Page::new(exports, limit, cursor, body)))
}

fn read_number(cursor: &str) -> Option<u64> {
    let digits = cursor.strip_prefix("number_")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Remove the files of a job
///
/// The job is kept. Without `dataset`, the call is for all exports of the job. With a key of scope `admin`, the call
/// can also give up exports that are committed but whose files have not been published for a while. They fail with
/// `file_lost`, and their consumer needs a full export. The files of the job's published exports stay then.
#[utoipa::path(
    delete, path = "/exports/{jobId}", operation_id = "deleteExportFile", tag = "exports",
    params(PathExport), responses((status = 204, description = "The files are removed, or the exports are given up.")),
    extensions(("x-codes" = json!([
        Code::StillOpen, Code::FileOfOtherDatabase, Code::FileOnOtherHost, Code::OutputMissing,
        Code::OutputFailed, Code::StorageFull, Code::StorageReadonly,
    ]))),
)]
pub(crate) async fn delete(
    service: Service,
    caller: Caller,
    PathExport { job, dataset }: PathExport,
) -> Result<StatusCode, Problem> {
    match service.remove_files(job, dataset.as_deref()).await {
        Err(service::Error::Open(_)) if caller.is_admin() => service.give_up(job, dataset.as_deref()).await?,
        removed => removed?,
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Acknowledge an export and all before it
///
/// Call this after you have committed the loaded rows. It acknowledges the consumer's exports of the dataset, in the
/// order of their numbers. Without `dataset`, it acknowledges each export of the job that has files. To acknowledge an
/// export again, or an earlier one, has no effect. After a consumer's first acknowledgment, retention keeps
/// unacknowledged exports for `RETAIN_UNACKED`.
#[utoipa::path(
    post, path = "/exports/{jobId}/ack", operation_id = "acknowledgeExport", tag = "exports",
    params(PathExport), responses((status = 200, description = "The job of the export.", body = AnyJobJson)),
    extensions(("x-codes" = json!([Code::NotCompleted, Code::NoFile, Code::AdHoc]))),
)]
pub(crate) async fn ack(
    service: Service,
    PathExport { job, dataset }: PathExport,
) -> Result<Json<AnyJobJson>, Problem> {
    Ok(Json(service.acknowledge(job, dataset.as_deref()).await?.into()))
}

/// Cancel a job
///
/// Cancels all exports of the job. A key for certain datasets needs all datasets of the job.
#[utoipa::path(
    post, path = "/exports/{jobId}/cancel", operation_id = "cancelExport", tag = "exports",
    params(PathJob),
    responses(
        (status = 202, description = "The job is cancelled, or will be in a moment.", body = AnyJobJson),
        (status = 200, description = "The job was cancelled before.", body = AnyJobJson),
    ),
    extensions(("x-codes" = json!([Code::Committing, Code::AlreadyEnded]))),
)]
pub(crate) async fn cancel(service: Service, PathJob(id): PathJob) -> Result<Response, Problem> {
    let (status, job) = match service.cancel(id).await? {
        Cancellation::Asked(job) => (StatusCode::ACCEPTED, job),
        Cancellation::Already(job) => (StatusCode::OK, job),
    };
    Ok((status, Json(AnyJobJson::from(job))).into_response())
}
