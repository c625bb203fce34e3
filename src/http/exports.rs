//! `/exports`: ask for one, look at it, cancel it, fetch its file.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::{StreamExt, stream};
use http_range_header::{EndPosition, RangeUnsatisfiableError, StartPosition, parse_range_header};
use serde::{Deserialize, Serialize};
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use crate::dataset::USERS;
use crate::dataset::catalog::is_name;
use crate::http::access::Caller;
use crate::http::input::{self, Consumer, Key, MaybeConsumer, Members, PathConsumer};
use crate::http::pages::{self, Page};
use crate::http::problem::Problem;
use crate::job::encoding::{BadEncoding, Compression, Encoding, Format};
use crate::job::selection::Selection;
use crate::job::{ExportType, Filter, Job, JobId, Request};
use crate::service::{self, Service};

/// A client whose events broke off asks again after this time.
const RECONNECT: Duration = Duration::from_secs(2);

/// A client waits for a job's end this long at most.
const MOST_SECONDS: u64 = 60;

/// `POST /exports`: a consumer's export of any type, or, without a consumer, an ad-hoc full one.
pub(crate) async fn create(
    State(service): State<Service>,
    MaybeConsumer(consumer): MaybeConsumer,
    Key(key): Key,
    mut members: Members,
) -> Result<Response, Problem> {
    let export_type = members.take_word("exportType")?.unwrap_or(ExportType::Full);
    let selection = if consumer.is_none() { selection_of(&mut members)? } else { Selection::default() };
    let (dataset, encoding) = options_of(members)?;
    if consumer.is_none() && export_type != ExportType::Full {
        let detail = format!("X-Consumer-ID: the header is missing, and {export_type} is relative to a consumer");
        return Err(Problem::bad_input("consumer_required", "X-Consumer-ID", detail));
    }
    let request = Request { consumer, dataset, export_type, selection, encoding, retry_of: None, key };
    Ok(accepted(submit(&service, &request).await?, "pending"))
}

/// `POST /exports/full`
pub(crate) async fn full(
    service: State<Service>,
    consumer: Consumer,
    key: Key,
    members: Members,
) -> Result<Response, Problem> {
    start(service, consumer, key, members, ExportType::Full).await
}

/// `POST /exports/incremental`
pub(crate) async fn incremental(
    service: State<Service>,
    consumer: Consumer,
    key: Key,
    members: Members,
) -> Result<Response, Problem> {
    start(service, consumer, key, members, ExportType::Incremental).await
}

/// `POST /exports/delta`
pub(crate) async fn delta(
    service: State<Service>,
    consumer: Consumer,
    key: Key,
    members: Members,
) -> Result<Response, Problem> {
    start(service, consumer, key, members, ExportType::Delta).await
}

/// `POST /export/{consumer_id}`: an incremental export of that consumer.
pub(crate) async fn incremental_of(
    service: State<Service>,
    PathConsumer(consumer): PathConsumer,
    key: Key,
    members: Members,
) -> Result<Response, Problem> {
    start(service, Consumer(consumer), key, members, ExportType::Incremental).await
}

async fn start(
    State(service): State<Service>,
    Consumer(consumer): Consumer,
    Key(key): Key,
    members: Members,
    export_type: ExportType,
) -> Result<Response, Problem> {
    let ((dataset, encoding), selection) = (options_of(members)?, Selection::default());
    let request = Request { consumer: Some(consumer), dataset, export_type, selection, encoding, retry_of: None, key };
    Ok(accepted(submit(&service, &request).await?, "started"))
}

/// A dataset in a body is input, not the name of what is asked for.
async fn submit(service: &Service, request: &Request) -> Result<Job, Problem> {
    match service.submit(request).await {
        Err(error @ service::Error::NoDataset(_)) => {
            Err(Problem::bad_input("member_invalid", "dataset", format!("dataset: {error}")))
        }
        done => Ok(done?),
    }
}

/// What of a dataset an ad-hoc export shall have.
fn selection_of(members: &mut Members) -> Result<Selection, Problem> {
    let columns = members.take_names("columns")?;
    let limit = members.take_number("limit", 1..=i64::MAX as u64)?;
    Ok(Selection { columns, filter: members.take_conditions("filter")?, limit })
}

/// The dataset, and how its rows are to be written, from what is left of the body.
fn options_of(mut members: Members) -> Result<(String, Encoding), Problem> {
    let dataset = members.take_text("dataset")?.unwrap_or_else(|| USERS.to_owned());
    let format = members.take_word("format")?.unwrap_or(Format::Csv);
    let compression = members.take_word("compression")?.unwrap_or(Compression::None);
    members.refuse_others()?;
    let encoding = Encoding::new(format, compression).map_err(|why| {
        let field = match why {
            BadEncoding::NotBuilt(_) => "format",
            BadEncoding::CompressedInside(_) => "compression",
        };
        Problem::bad_input("member_invalid", field, format!("{field}: {why}"))
    });
    Ok((dataset, encoding?))
}

/// `POST /exports/{jobId}/retry`: a new job like a failed or cancelled one.
pub(crate) async fn retry(
    State(service): State<Service>,
    input::Job(id): input::Job,
    Key(key): Key,
    members: Members,
) -> Result<Response, Problem> {
    members.refuse_others()?;
    Ok(accepted(service.retry(id, key).await?, "pending"))
}

/// A job was taken on; `status` is the word that the call's answer has for that.
fn accepted(job: Job, status: &'static str) -> Response {
    let location = [(header::LOCATION, format!("/exports/{}", job.id))];
    let answer = Submitted {
        job_id: job.id.to_string(),
        status,
        export_type: job.export_type.as_str(),
        output_filename: job.output_filename,
    };
    (StatusCode::ACCEPTED, location, Json(answer)).into_response()
}

/// The query of `/exports/{jobId}`.
#[derive(Deserialize)]
pub(crate) struct Patience {
    wait: Option<String>,
}

/// `GET /exports/{jobId}`; with `wait`, once the job has ended, or after that many seconds.
pub(crate) async fn get(
    State(service): State<Service>,
    input::Job(id): input::Job,
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
pub(crate) async fn events(State(service): State<Service>, input::Job(id): input::Job) -> Result<Response, Problem> {
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
pub(crate) async fn delete(State(service): State<Service>, input::Job(id): input::Job) -> Result<StatusCode, Problem> {
    service.remove_file(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /exports/{jobId}/cancel`
pub(crate) async fn cancel(State(service): State<Service>, input::Job(id): input::Job) -> Result<Response, Problem> {
    let (job, already) = service.cancel(id).await?;
    let status = if already { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(JobBody::from(job))).into_response())
}

/// `GET /exports/{jobId}/download`, whole or one range of it. A set of several ranges is answered with the whole file, as
/// RFC 9110 allows.
pub(crate) async fn download(
    State(service): State<Service>,
    input::Job(id): input::Job,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let file = service.open_file(id).await?;
    let place = &file.place;
    let size = place.identity.size;
    let etag = format!("\"{}\"", place.sha256);
    let mut response_headers = HeaderMap::new();
    let mut set = |name, value: String| {
        let value = value.parse().expect("our names, hashes and numbers are valid header values");
        response_headers.insert(name, value);
    };
    set(header::CONTENT_TYPE, place.encoding.media_type().to_owned());
    set(header::CONTENT_DISPOSITION, format!("attachment; filename=\"{}\"", place.output_filename));
    set(header::ETAG, etag.clone());
    set(header::ACCEPT_RANGES, "bytes".to_owned());
    set(header::LAST_MODIFIED, place.finished_at.format("%a, %d %b %Y %H:%M:%S GMT").to_string());

    if let Some(wanted) = text(&headers, header::IF_NONE_MATCH)
        && wanted.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag || tag.trim() == "*")
    {
        return Ok((StatusCode::NOT_MODIFIED, response_headers).into_response());
    }
    // A range of an older file must not be glued to this one: the tag must be the very same.
    let unchanged = text(&headers, header::IF_RANGE).is_none_or(|tag| tag == etag);
    // Only a GET has ranges (RFC 9110, 14.2).
    let range = text(&headers, header::RANGE)
        .filter(|_| unchanged && method == Method::GET)
        .map_or(Wanted::Whole, |range| wanted(range, size));
    let (status, from, length) = match range {
        Wanted::Whole => (StatusCode::OK, 0, size),
        Wanted::PastTheEnd => return Ok(Problem::range_not_satisfiable(size)),
        Wanted::Part { first, last } => {
            set(header::CONTENT_RANGE, format!("bytes {first}-{last}/{size}"));
            (StatusCode::PARTIAL_CONTENT, first, last - first + 1)
        }
    };
    set(header::CONTENT_LENGTH, length.to_string());
    let body = ReaderStream::with_capacity(file.part(from, length).await?, 256 * 1024);
    Ok((status, response_headers, Body::from_stream(body)).into_response())
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part { first: u64, last: u64 },
    PastTheEnd,
}

/// What a `Range` asks for of `size` bytes. One that can't be read is ignored (RFC 9110, 14.2).
fn wanted(range: &str, size: u64) -> Wanted {
    let ranges = match parse_range_header(range) {
        Ok(parsed) => parsed.ranges,
        Err(RangeUnsatisfiableError::ZeroSuffix) => return Wanted::PastTheEnd,
        Err(_) => return Wanted::Whole,
    };
    let [range] = ranges.as_slice() else { return Wanted::Whole };
    let (first, last) = match (range.start, range.end) {
        (StartPosition::FromLast(length), _) => (size.saturating_sub(length), size.saturating_sub(1)),
        (StartPosition::Index(first), EndPosition::LastByte) => (first, size.saturating_sub(1)),
        (StartPosition::Index(first), EndPosition::Index(last)) if first <= last => {
            (first, last.min(size.saturating_sub(1)))
        }
        (StartPosition::Index(_), EndPosition::Index(_)) => return Wanted::Whole,
    };
    if first < size { Wanted::Part { first, last } } else { Wanted::PastTheEnd }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A time in JSON: RFC 3339, UTC, microseconds.
pub(crate) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Submitted {
    job_id: String,
    status: &'static str,
    export_type: &'static str,
    output_filename: String,
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges() {
        for (range, expected) in [
            ("bytes=0-3", Wanted::Part { first: 0, last: 3 }),
            ("bytes=8-", Wanted::Part { first: 8, last: 9 }),
            ("bytes=8-99", Wanted::Part { first: 8, last: 9 }),
            ("bytes=-2", Wanted::Part { first: 8, last: 9 }),
            ("bytes=-99", Wanted::Part { first: 0, last: 9 }),
            ("bytes=10-", Wanted::PastTheEnd),
            ("bytes=-0", Wanted::PastTheEnd),
            ("bytes=5-4", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("rows=0-1", Wanted::Whole),
            ("bytes", Wanted::Whole),
        ] {
            assert_eq!(wanted(range, 10), expected, "{range}");
        }
    }

    proptest! {
        #[test]
        fn a_range_is_inside_the_file(range in "bytes=[0-9,-]{0,24}|\\PC{0,40}", size in 1u64..) {
            if let Wanted::Part { first, last } = wanted(&range, size) {
                prop_assert!(first <= last && last < size);
            }
        }
    }
}
