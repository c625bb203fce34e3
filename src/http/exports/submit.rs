//! The calls that make an export: what they carry, and what they answer.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::dataset::USERS;
use crate::http::input::{Asked, Consumer, MaybeConsumer, Members, PathConsumer, PathJob};
use crate::http::problem::Problem;
use crate::job::encoding::{BadEncoding, Compression, Encoding, Format};
use crate::job::selection::Selection;
use crate::job::{ConsumerId, ExportType, Job, Request};
use crate::service::{self, Service};

/// `POST /exports`: a consumer's export of any type, or, without a consumer, an ad-hoc full one.
pub(crate) async fn create(
    State(service): State<Service>,
    Asked { of: MaybeConsumer(consumer), key, mut members }: Asked<MaybeConsumer>,
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
pub(crate) async fn full(State(service): State<Service>, asked: Asked<Consumer>) -> Result<Response, Problem> {
    start(&service, asked, ExportType::Full).await
}

/// `POST /exports/incremental`
pub(crate) async fn incremental(State(service): State<Service>, asked: Asked<Consumer>) -> Result<Response, Problem> {
    start(&service, asked, ExportType::Incremental).await
}

/// `POST /exports/delta`
pub(crate) async fn delta(State(service): State<Service>, asked: Asked<Consumer>) -> Result<Response, Problem> {
    start(&service, asked, ExportType::Delta).await
}

/// `POST /export/{consumer_id}`: an incremental export of that consumer.
pub(crate) async fn incremental_of(
    State(service): State<Service>,
    asked: Asked<PathConsumer>,
) -> Result<Response, Problem> {
    start(&service, asked, ExportType::Incremental).await
}

/// Starts an export of the type that the call's path has said.
async fn start<C: Into<ConsumerId>>(
    service: &Service,
    asked: Asked<C>,
    export_type: ExportType,
) -> Result<Response, Problem> {
    let Asked { of: consumer, key, members } = asked;
    let ((dataset, encoding), selection) = (options_of(members)?, Selection::default());
    let consumer = Some(consumer.into());
    let request = Request { consumer, dataset, export_type, selection, encoding, retry_of: None, key };
    Ok(accepted(submit(service, &request).await?, "started"))
}

/// `POST /exports/{jobId}/retry`: a new job like a failed or cancelled one.
pub(crate) async fn retry(
    State(service): State<Service>,
    Asked { of: PathJob(id), key, members }: Asked<PathJob>,
) -> Result<Response, Problem> {
    members.refuse_others()?;
    Ok(accepted(service.retry(id, key).await?, "pending"))
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

/// What a call that makes an export answers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Submitted {
    job_id: String,
    status: &'static str,
    export_type: &'static str,
    output_filename: String,
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
