//! The calls that make an export, and what they answer. What they carry is in `submission`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::link::LinkBuilder;
use utoipa::openapi::{self, RefOr};
use utoipa::{IntoResponses, PartialSchema, ToSchema};
use uuid::Uuid;

use crate::http::code::Code;
use crate::http::exports::submission::{NewExport, Nothing, Options, Submission};
use crate::http::input::{Consumer, MaybeConsumer, PathConsumer, PathJob};
use crate::http::problem::Problem;
use crate::job::{ConsumerId, ExportType, Job, Request};
use crate::service::{self, Service};

/// Ask for an export of any type, or an ad-hoc one
///
/// With `X-Consumer-ID` the export is that consumer's, of the type that the body says. Without, it is an ad-hoc full
/// export, which reads and moves no watermark and runs beside others; only ad-hoc exports take `columns`, `filter` and
/// `limit`.
#[utoipa::path(
    post, path = "/exports", operation_id = "createExport", tag = "exports",
    params(Submission<MaybeConsumer, NewExport>), request_body = NewExport, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::TableMissing, Code::PermissionDenied, Code::NotTracked, Code::OutOfStep, Code::DatabaseRestored, Code::TooManyOpenJobs, Code::TableUnreadable,
        Code::DatasetMismatch,
    ]))),
)]
pub(crate) async fn create(
    State(service): State<Service>,
    submission: Submission<MaybeConsumer, NewExport>,
) -> Result<Response, Problem> {
    Ok(accepted(submit(&service, &submission.request(&service)?).await?, "pending"))
}

/// Ask for every live row
///
/// The export moves the consumer's watermark to the latest `updated_at` among the rows. What the consumer has of before
/// may go: the file has everything.
#[utoipa::path(
    post, path = "/exports/full", operation_id = "startFull", tag = "exports",
    params(Submission<Consumer, Options>), request_body = Options, responses(Submitted),
    extensions(("x-codes" = json!([Code::TableMissing, Code::PermissionDenied, Code::NotTracked, Code::TooManyOpenJobs]))),
)]
pub(crate) async fn full(
    State(service): State<Service>,
    submission: Submission<Consumer, Options>,
) -> Result<Response, Problem> {
    start(&service, submission, ExportType::Full).await
}

/// Ask for the live rows that changed since the consumer's last export
#[utoipa::path(
    post, path = "/exports/incremental", operation_id = "startIncremental", tag = "exports",
    params(Submission<Consumer, Options>), request_body = Options, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::TableMissing, Code::PermissionDenied, Code::NotTracked, Code::OutOfStep, Code::DatabaseRestored, Code::TooManyOpenJobs,
    ]))),
)]
pub(crate) async fn incremental(
    State(service): State<Service>,
    submission: Submission<Consumer, Options>,
) -> Result<Response, Problem> {
    start(&service, submission, ExportType::Incremental).await
}

/// Ask for the rows that changed since the consumer's last export, deleted ones too
///
/// Each row has its operation: `INSERT`, `UPDATE` or `DELETE`. Deletions come first.
#[utoipa::path(
    post, path = "/exports/delta", operation_id = "startDelta", tag = "exports",
    params(Submission<Consumer, Options>), request_body = Options, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::TableMissing, Code::PermissionDenied, Code::NotTracked, Code::OutOfStep, Code::DatabaseRestored, Code::TooManyOpenJobs,
    ]))),
)]
pub(crate) async fn delta(
    State(service): State<Service>,
    submission: Submission<Consumer, Options>,
) -> Result<Response, Problem> {
    start(&service, submission, ExportType::Delta).await
}

/// Ask for an incremental export of the consumer that the path names
///
/// `full`, `incremental`, `delta` and `watermark` are no consumers here, but slips for calls under `/exports/`: 404
/// names the call.
#[utoipa::path(
    post, path = "/export/{consumer_id}", operation_id = "startIncrementalOf", tag = "exports",
    params(Submission<PathConsumer, Options>), request_body = Options, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::NotFound, Code::TableMissing, Code::PermissionDenied, Code::NotTracked, Code::OutOfStep, Code::DatabaseRestored, Code::TooManyOpenJobs,
    ]))),
)]
pub(crate) async fn incremental_of(
    State(service): State<Service>,
    submission: Submission<PathConsumer, Options>,
) -> Result<Response, Problem> {
    start(&service, submission, ExportType::Incremental).await
}

/// Submits an export of the type that the call's path says.
async fn start<C: Into<ConsumerId>>(
    service: &Service,
    submission: Submission<C, Options>,
    export_type: ExportType,
) -> Result<Response, Problem> {
    Ok(accepted(submit(service, &submission.request(service, export_type)?).await?, "started"))
}

/// Ask again for an export that failed or was cancelled
///
/// The call makes a new job like that one, and names that one in `retryOf`.
#[utoipa::path(
    post, path = "/exports/{jobId}/retry", operation_id = "retryExport", tag = "exports",
    params(Submission<PathJob, Nothing>), request_body = Nothing, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::NotFailed, Code::TableMissing, Code::PermissionDenied, Code::NotTracked, Code::OutOfStep, Code::DatabaseRestored, Code::NoDataset, Code::TooManyOpenJobs,
        Code::TableUnreadable, Code::DatasetMismatch,
    ]))),
)]
pub(crate) async fn retry(
    State(service): State<Service>,
    Submission { of: PathJob(id), key, trace, body: Nothing {} }: Submission<PathJob, Nothing>,
) -> Result<Response, Problem> {
    Ok(accepted(service.retry(id, key, trace).await?, "pending"))
}

/// Submits a request. A dataset in a body is input, not the thing that the path names: an unknown one is 400, not 404.
pub(crate) async fn submit(service: &Service, request: &Request) -> Result<Job, Problem> {
    match service.submit(request).await {
        Err(error @ service::Error::NoDataset(_)) => {
            Err(Problem::bad_input(Code::MemberInvalid, "dataset", format!("dataset: {error}")))
        }
        done => Ok(done?),
    }
}

/// An export that is queued.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "jobId": "01a1f83b-3f18-718b-bb88-fdeaa3d54f3e", "status": "started", "exportType": "delta",
    "outputFilename": "delta_search_20261120T091314Z.csv"
}))]
pub(crate) struct Submitted {
    /// The export's id
    job_id: Uuid,
    /// `started` where the path said the type, else `pending`
    #[schema(pattern = "^(started|pending)$")]
    status: &'static str,
    /// Which rows the file will hold
    export_type: ExportType,
    /// The name that the file will have
    output_filename: String,
}

impl IntoResponses for Submitted {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let location =
            HeaderBuilder::new().schema(Some(String::schema())).description(Some("The job: `/exports/{jobId}`"));
        let to =
            |operation: &str| LinkBuilder::new().operation_id(operation).parameter("jobId", "$response.body#/jobId");
        let links = ["getExport", "followExport", "cancelExport", "downloadExport", "deleteExportFile"];
        let answer = openapi::ResponseBuilder::new()
            .description(
                "The export is queued. It will be done, whatever happens to this process.\n\nA consumer's position moves when the file is \
                complete, not when somebody has loaded it. If this answer is lost, the file isn't: a loader goes on with \
                `GET /exports?consumer=…&dataset=…&after={jobId}`, where `jobId` is the export that it loaded last. The answer has every \
                export since, oldest first.",
            )
            .header("Location", location.build())
            .content("application/json", openapi::Content::new(Some(openapi::Ref::from_schema_name("Submitted"))));
        let answer = links.iter().fold(answer, |answer, operation| answer.link(*operation, to(operation).build()));
        BTreeMap::from([("202".to_owned(), answer.build().into())])
    }
}

/// The answer to a request whose job is queued. `status` is the word that the call's answer has for that.
fn accepted(job: Job, status: &'static str) -> Response {
    let location = [(header::LOCATION, format!("/exports/{}", job.id))];
    let answer = Submitted {
        job_id: job.id.as_uuid(),
        status,
        export_type: job.export_type,
        output_filename: job.output_filename,
    };
    (StatusCode::ACCEPTED, location, Json(answer)).into_response()
}
