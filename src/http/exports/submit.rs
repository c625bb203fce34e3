//! The calls that create exports, and their responses. Their input is in `submission`.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::link::LinkBuilder;
use utoipa::openapi::{self, RefOr};
use utoipa::{IntoResponses, PartialSchema, ToSchema};
use uuid::Uuid;

use crate::http::body::invalid;
use crate::http::code::Code;
use crate::http::exports::submission::{EmptyBody, ExportOptions, NewExport, RequestedExports, Submission};
use crate::http::input::{Consumer, MaybeConsumer, PathConsumer, PathJob};
use crate::http::problem::Problem;
use crate::job::datasets::Omitted;
use crate::job::json::ExportTypeSchema;
use crate::job::{Export, Job};
use crate::service::{self, Service};
use pg_rows::export_type::ExportType;

/// Request an export of any type, or an ad-hoc export
///
/// With `X-Consumer-ID`, the export belongs to that consumer and has the type given in the body. Without it, the export
/// is an ad-hoc full export. An ad-hoc export neither reads nor moves a watermark, and runs in parallel with other
/// exports. Only ad-hoc exports accept `columns`, `filter` and `limit`.
#[utoipa::path(
    post, path = "/exports", operation_id = "createExport", tag = "exports",
    params(Submission<MaybeConsumer, NewExport>), request_body = NewExport, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::ColumnMasked, Code::FullOnly, Code::NothingReady, Code::OutOfStep, Code::DatabaseRestored,
    ]))),
)]
pub(crate) async fn create(
    service: Service,
    submission: Submission<MaybeConsumer, NewExport>,
) -> Result<Response, Problem> {
    start(&service, submission.requested(&service)?, "pending").await
}

/// Request an export of all live rows
///
/// The export moves the consumer's watermark to the latest `updated_at` among the rows. The file contains all rows, so
/// the consumer may discard earlier data.
#[utoipa::path(
    post, path = "/exports/full", operation_id = "startFull", tag = "exports",
    params(Submission<Consumer, ExportOptions>), request_body = ExportOptions, responses(Submitted),
    extensions(("x-codes" = json!([Code::NothingReady]))),
)]
pub(crate) async fn full(
    service: Service,
    submission: Submission<Consumer, ExportOptions>,
) -> Result<Response, Problem> {
    start(&service, submission.requested(&service, ExportType::Full)?, "started").await
}

/// Request an export of the live rows that changed since the consumer's last export
#[utoipa::path(
    post, path = "/exports/incremental", operation_id = "startIncremental", tag = "exports",
    params(Submission<Consumer, ExportOptions>), request_body = ExportOptions, responses(Submitted),
    extensions(("x-codes" = json!([Code::FullOnly, Code::NothingReady, Code::OutOfStep, Code::DatabaseRestored]))),
)]
pub(crate) async fn incremental(
    service: Service,
    submission: Submission<Consumer, ExportOptions>,
) -> Result<Response, Problem> {
    start(&service, submission.requested(&service, ExportType::Incremental)?, "started").await
}

/// Request an export of the rows that changed since the consumer's last export, including deleted rows
///
/// Each row contains its operation: `INSERT`, `UPDATE` or `DELETE`. Deletions come first.
#[utoipa::path(
    post, path = "/exports/delta", operation_id = "startDelta", tag = "exports",
    params(Submission<Consumer, ExportOptions>), request_body = ExportOptions, responses(Submitted),
    extensions(("x-codes" = json!([Code::FullOnly, Code::NothingReady, Code::OutOfStep, Code::DatabaseRestored]))),
)]
pub(crate) async fn delta(
    service: Service,
    submission: Submission<Consumer, ExportOptions>,
) -> Result<Response, Problem> {
    start(&service, submission.requested(&service, ExportType::Delta)?, "started").await
}

/// Request an incremental export for the consumer in the path
///
/// `full`, `incremental`, `delta` and `watermark` are not accepted as consumers, because they are likely typos of calls
/// under `/exports/`. The call responds with 404, and the detail names the intended call.
#[utoipa::path(
    post, path = "/export/{consumer_id}", operation_id = "startIncrementalOf", tag = "exports",
    params(Submission<PathConsumer, ExportOptions>), request_body = ExportOptions, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::NotFound, Code::FullOnly, Code::NothingReady, Code::OutOfStep, Code::DatabaseRestored,
    ]))),
)]
pub(crate) async fn incremental_of(
    service: Service,
    submission: Submission<PathConsumer, ExportOptions>,
) -> Result<Response, Problem> {
    start(&service, submission.requested(&service, ExportType::Incremental)?, "started").await
}

/// Submits a job. `status` is the word that the call uses for a queued one.
async fn start(service: &Service, requested: RequestedExports, status: &'static str) -> Result<Response, Problem> {
    let job = match requested {
        RequestedExports::Export(request) => {
            service.submit(&request).await.map_err(|error| refusal("dataset", error))?
        }
        RequestedExports::Datasets(order) => {
            service.submit_datasets(&order).await.map_err(|error| refusal("datasets", error))?
        }
    };
    // The job is accepted, so a failure of this read is no failure of the call.
    let is_new = service.is_new_consumer(&job).await.unwrap_or_default();
    Ok(accepted(job, is_new, status))
}

/// Returns the problem of a refused job. An unknown dataset in this member of the body is invalid input, so the status
/// is 400 instead of 404.
fn refusal(member: &str, error: service::Error) -> Problem {
    match error {
        service::Error::NoDataset(_) => invalid(member, error),
        other => other.into(),
    }
}

/// Request a job again that failed or was cancelled
///
/// The call creates a new job with the same parameters. Its `retryOf` contains the id of the previous job. A key for
/// certain datasets needs all datasets of the job.
#[utoipa::path(
    post, path = "/exports/{jobId}/retry", operation_id = "retryExport", tag = "exports",
    params(Submission<PathJob, EmptyBody>), request_body = EmptyBody, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::NotFailed, Code::FullOnly, Code::OutOfStep, Code::DatabaseRestored, Code::NoDataset,
    ]))),
)]
pub(crate) async fn retry(
    service: Service,
    Submission { target: PathJob(id), key, trace, body: EmptyBody {} }: Submission<PathJob, EmptyBody>,
) -> Result<Response, Problem> {
    Ok(accepted(service.retry(id, key, trace).await?, false, "pending"))
}

/// A queued job of one dataset.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "jobId": "01a1f83b-3f18-718b-bb88-fdeaa3d54f3e", "status": "started", "exportType": "delta",
    "outputFilename": "delta_search_20261120T091314Z.csv"
}))]
pub(crate) struct Submitted {
    /// The job's id
    job_id: Uuid,
    /// `started` if the path determines the type, else `pending`
    #[schema(pattern = "^(started|pending)$")]
    status: &'static str,
    /// The set of rows in the file
    #[schema(value_type = ExportTypeSchema)]
    export_type: ExportType,
    /// The name of the future file
    output_filename: String,
    /// True if the consumer had neither an export nor a watermark before; else it is not there
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    new_consumer: bool,
}

impl IntoResponses for Submitted {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let location =
            HeaderBuilder::new().schema(Some(String::schema())).description(Some("The job: `/exports/{jobId}`"));
        let to =
            |operation: &str| LinkBuilder::new().operation_id(operation).parameter("jobId", "$response.body#/jobId");
        let links = ["getExport", "followExport", "cancelExport", "downloadExport", "deleteExportFile"];
        let [one, several] = ["Submitted", "SubmittedDatasets"].map(openapi::Ref::from_schema_name);
        let body = openapi::OneOfBuilder::new().item(one).item(several);
        let answer = openapi::ResponseBuilder::new()
            .description(
                "The job is queued and survives a crash of this process.\n\nA consumer's position moves when the file is complete, not \
                when it has been loaded. If the client misses this response, the file still exists: a loader continues with \
                `GET /exports?consumer=…&dataset=…&after={jobId}`, where `jobId` is the export that it loaded last. The response has \
                all exports since then, oldest first.",
            )
            .header("Location", location.build())
            .content("application/json", openapi::Content::new(Some(openapi::Schema::OneOf(body.build()))));
        let answer = links.iter().fold(answer, |answer, operation| answer.link(*operation, to(operation).build()));
        BTreeMap::from([("202".to_owned(), answer.build().into())])
    }
}

/// A queued job of several datasets.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SubmittedDatasets {
    /// The job's id
    job_id: Uuid,
    /// `started` if the path determines the type, else `pending`
    #[schema(pattern = "^(started|pending)$")]
    status: &'static str,
    /// The type of its exports. One that is healed has the type `full`
    #[schema(value_type = ExportTypeSchema)]
    export_type: ExportType,
    /// Its exports, in the order of their datasets' names
    exports: Vec<SubmittedExport>,
    /// The datasets that `"*"` does not export
    left_out: Vec<Omitted>,
    /// True if the consumer had neither an export nor a watermark before; else it is not there
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    new_consumer: bool,
}

/// An export of a queued job.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SubmittedExport {
    /// The dataset's name
    dataset: String,
    /// The type of the export
    #[schema(value_type = ExportTypeSchema)]
    export_type: ExportType,
    /// The name of the future file
    output_filename: String,
}

impl From<Export> for SubmittedExport {
    fn from(Export { dataset, export_type, output_filename, .. }: Export) -> SubmittedExport {
        SubmittedExport { dataset, export_type, output_filename }
    }
}

/// Returns the response for a queued job. `status` is the word that the call uses for this state.
fn accepted(job: Job, new_consumer: bool, status: &'static str) -> Response {
    let location = [(header::LOCATION, format!("/exports/{}", job.id()))];
    let (job_id, export_type) = (job.id().as_uuid(), job.export_type());
    let mut exports: Vec<_> = job.exports.into_iter().map(SubmittedExport::from).collect();
    let body = match job.datasets {
        None => {
            let output_filename = exports.remove(0).output_filename;
            Json(Submitted { job_id, status, export_type, output_filename, new_consumer }).into_response()
        }
        Some(requested) => {
            let left_out = requested.left_out;
            Json(SubmittedDatasets { job_id, status, export_type, exports, left_out, new_consumer }).into_response()
        }
    };
    (StatusCode::ACCEPTED, location, body).into_response()
}
