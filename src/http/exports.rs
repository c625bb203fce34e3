//! `/exports`: look at them, follow one, cancel it, remove its file. How one is asked for is in `submit`, its file in `download`.

pub(super) mod download;
pub(super) mod submit;

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::dataset::catalog::is_name;
use crate::http::access::Caller;
use crate::http::input::PathJob;
use crate::http::pages::{self, Page};
use crate::http::problem::Problem;
use crate::job::{Filter, Job, JobId};
use crate::service::Service;

/// A client whose events broke off asks again after this time.
const RECONNECT: Duration = Duration::from_secs(2);

/// A client waits for a job's end this long at most.
const MOST_SECONDS: u64 = 60;

/// The query of `/exports/{jobId}`.
#[derive(Deserialize)]
pub(crate) struct Patience {
    wait: Option<String>,
}

/// `GET /exports/{jobId}`; with `wait`, once the job has ended, or after that many seconds.
pub(crate) async fn get(
    State(service): State<Service>,
    PathJob(id): PathJob,
    Query(Patience { wait }): Query<Patience>,
) -> Result<Json<JobBody>, Problem> {
    let job = match wait.map(|seconds| seconds.parse::<u64>()) {
        None => service.job(id).await?,
        Some(Ok(seconds)) => service.ended_job(id, Duration::from_secs(seconds.min(MOST_SECONDS))).await?,
        Some(Err(_)) => {
            let detail = format!("wait: a number of seconds up to {MOST_SECONDS} is expected");
            return Err(Problem::bad_input("parameter_invalid", "wait", detail));
        }
    };
    Ok(Json(job.into()))
}

/// `GET /exports/{jobId}/events`: server-sent events, `job` as it stands, `progress` at each change, and its end by its status's
/// word, which ends the stream too. A stream that ends without that is for the client to ask for again.
pub(crate) async fn events(State(service): State<Service>, PathJob(id): PathJob) -> Result<Response, Problem> {
    let jobs = service.follow(id).await?.enumerate();
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
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listed {
    consumer: Option<String>,
    status: Option<String>,
    export_type: Option<String>,
    dataset: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /exports`: jobs, newest first.
pub(crate) async fn list(
    State(service): State<Service>,
    caller: Caller,
    Query(listed): Query<Listed>,
) -> Result<Json<Page<JobBody>>, Problem> {
    let limit = pages::limit(listed.limit.as_deref())?;
    let filter = Filter {
        consumer: word("consumer", listed.consumer)?,
        among: caller.consumers().map(<[_]>::to_vec),
        dataset: listed.dataset.map(dataset).transpose()?,
        export_type: word("exportType", listed.export_type)?,
        status: word("status", listed.status)?,
        before: listed.cursor.map(|cursor| read_cursor(&cursor).ok_or_else(pages::bad_cursor)).transpose()?,
    };
    let jobs = service.jobs(&filter, limit + 1).await?;
    Ok(Json(Page::new(jobs, limit, cursor_of, JobBody::from)))
}

fn word<T: FromStr<Err: Display>>(name: &'static str, text: Option<String>) -> Result<Option<T>, Problem> {
    let bad = |why: T::Err| Problem::bad_input("parameter_invalid", name, format!("{name}: {why}"));
    text.map(|text| text.parse().map_err(bad)).transpose()
}

/// A name that a dataset may have or have had.
fn dataset(name: String) -> Result<String, Problem> {
    let bad = || Problem::bad_input("parameter_invalid", "dataset", "dataset: the name of a dataset is expected");
    if is_name(&name) { Ok(name) } else { Err(bad()) }
}

/// A cursor is its job's time and id.
fn cursor_of(job: &Job) -> String {
    format!("{}_{}", job.created_at.timestamp_micros(), job.id)
}

fn read_cursor(cursor: &str) -> Option<(DateTime<Utc>, JobId)> {
    let (micros, id) = cursor.split_once('_')?;
    Some((DateTime::from_timestamp_micros(micros.parse().ok()?)?, id.parse::<Uuid>().ok()?.into()))
}

/// `DELETE /exports/{jobId}`: removes its file.
pub(crate) async fn delete(State(service): State<Service>, PathJob(id): PathJob) -> Result<StatusCode, Problem> {
    service.remove_file(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /exports/{jobId}/cancel`
pub(crate) async fn cancel(State(service): State<Service>, PathJob(id): PathJob) -> Result<Response, Problem> {
    let (job, already) = service.cancel(id).await?;
    let status = if already { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(JobBody::from(job))).into_response())
}

/// A time in JSON: RFC 3339, UTC, microseconds.
pub(crate) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A job as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JobBody {
    job_id: String,
    consumer_id: Option<String>,
    dataset: String,
    export_type: &'static str,
    status: &'static str,
    progress: u8,
    rows_exported: u64,
    bytes_written: u64,
    output_filename: String,
    format: &'static str,
    compression: &'static str,
    sha256: Option<String>,
    attempt: u32,
    error: Option<FailureBody>,
    continuity: Option<&'static str>,
    late_rows: u64,
    open_transactions: Option<u32>,
    oldest_transaction_seconds: Option<f64>,
    schema_changed: bool,
    table_rewritten: bool,
    watermark_from: Option<String>,
    watermark_to: Option<String>,
    retry_of: Option<String>,
    created_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    duration_seconds: Option<f64>,
}

#[derive(Serialize)]
struct FailureBody {
    code: &'static str,
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
            continuity: job.findings.continuity.map(|why| why.as_str()),
            late_rows: job.late_rows,
            open_transactions: job.findings.open_transactions,
            oldest_transaction_seconds: job.findings.oldest_transaction_seconds,
            schema_changed: job.schema_changed,
            table_rewritten: job.findings.table_rewritten,
            watermark_from: job.watermark_from.map(rfc3339),
            watermark_to: job.watermark_to.map(rfc3339),
            retry_of: job.retry_of.map(|job| job.to_string()),
            created_at: rfc3339(job.created_at),
            started_at: job.started_at.map(rfc3339),
            finished_at: job.finished_at.map(rfc3339),
            duration_seconds: duration,
        }
    }
}
