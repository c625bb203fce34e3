//! The calls that create exports, and their responses. Their input is in `submission`.

use std::collections::BTreeMap;
use std::slice;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::link::LinkBuilder;
use utoipa::openapi::{self, RefOr};
use utoipa::{IntoResponses, PartialSchema, ToSchema};
use uuid::Uuid;

use crate::http::code::Code;
use crate::http::exports::submission::{Asked, EmptyBody, ExportOptions, NewExport, Submission};
use crate::http::input::{Consumer, MaybeConsumer, PathConsumer, PathJob};
use crate::http::problem::Problem;
use crate::job::batch::Batch;
use crate::job::batch_json::LeftOutJson;
use crate::job::{ConsumerId, ExportType, Job, Request};
use crate::service::batches::BatchOrder;
use crate::service::{self, Service};

/// Request an export of any type, or an ad-hoc export
///
/// With `X-Consumer-ID`, the export belongs to that consumer and has the type given in the body. Without it, the export
/// is an ad-hoc full export. An ad-hoc export neither reads nor moves a watermark, and runs in parallel with other
/// exports. Only ad-hoc exports accept `columns`, `filter` and `limit`.
#[utoipa::path(
    post, path = "/exports", operation_id = "createExport", tag = "exports",
    params(Submission<MaybeConsumer, NewExport>), request_body = NewExport, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::ColumnMasked, Code::TableMissing, Code::PermissionDenied, Code::NotTracked, Code::FullOnly, Code::NothingReady, Code::OutOfStep, Code::DatabaseRestored, Code::TooManyOpenJobs,
        Code::TableUnreadable, Code::DatasetMismatch, Code::OutputMissing,
    ]))),
)]
pub(crate) async fn create(
    service: Service,
    submission: Submission<MaybeConsumer, NewExport>,
) -> Result<Response, Problem> {
    start(&service, submission.asked(&service)?, "pending").await
}

/// Request an export of all live rows
///
/// The export moves the consumer's watermark to the latest `updated_at` among the rows. The file contains all rows, so
/// the consumer may discard earlier data.
#[utoipa::path(
    post, path = "/exports/full", operation_id = "startFull", tag = "exports",
    params(Submission<Consumer, ExportOptions>), request_body = ExportOptions, responses(Submitted),
    extensions(("x-codes" = json!([Code::TableMissing, Code::PermissionDenied, Code::NotTracked, Code::NothingReady, Code::TooManyOpenJobs,
        Code::TableUnreadable, Code::DatasetMismatch, Code::OutputMissing,
    ]))),
)]
pub(crate) async fn full(
    service: Service,
    submission: Submission<Consumer, ExportOptions>,
) -> Result<Response, Problem> {
    start(&service, submission.asked(&service, ExportType::Full)?, "started").await
}

/// Request an export of the live rows that changed since the consumer's last export
#[utoipa::path(
    post, path = "/exports/incremental", operation_id = "startIncremental", tag = "exports",
    params(Submission<Consumer, ExportOptions>), request_body = ExportOptions, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::TableMissing, Code::PermissionDenied, Code::NotTracked, Code::FullOnly, Code::NothingReady, Code::OutOfStep, Code::DatabaseRestored, Code::TooManyOpenJobs,
        Code::TableUnreadable, Code::DatasetMismatch, Code::OutputMissing,
    ]))),
)]
pub(crate) async fn incremental(
    service: Service,
    submission: Submission<Consumer, ExportOptions>,
) -> Result<Response, Problem> {
    start(&service, submission.asked(&service, ExportType::Incremental)?, "started").await
}

/// Request an export of the rows that changed since the consumer's last export, including deleted rows
///
/// Each row contains its operation: `INSERT`, `UPDATE` or `DELETE`. Deletions come first.
#[utoipa::path(
    post, path = "/exports/delta", operation_id = "startDelta", tag = "exports",
    params(Submission<Consumer, ExportOptions>), request_body = ExportOptions, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::TableMissing, Code::PermissionDenied, Code::NotTracked, Code::FullOnly, Code::NothingReady, Code::OutOfStep, Code::DatabaseRestored, Code::TooManyOpenJobs,
        Code::TableUnreadable, Code::DatasetMismatch, Code::OutputMissing,
    ]))),
)]
pub(crate) async fn delta(
    service: Service,
    submission: Submission<Consumer, ExportOptions>,
) -> Result<Response, Problem> {
    start(&service, submission.asked(&service, ExportType::Delta)?, "started").await
}

/// Request an incremental export for the consumer in the path
///
/// `full`, `incremental`, `delta` and `watermark` are not accepted as consumers, because they are likely typos of calls
/// under `/exports/`. The call responds with 404, and the detail names the intended call.
#[utoipa::path(
    post, path = "/export/{consumer_id}", operation_id = "startIncrementalOf", tag = "exports",
    params(Submission<PathConsumer, ExportOptions>), request_body = ExportOptions, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::NotFound, Code::TableMissing, Code::PermissionDenied, Code::NotTracked, Code::FullOnly, Code::NothingReady, Code::OutOfStep, Code::DatabaseRestored, Code::TooManyOpenJobs,
        Code::TableUnreadable, Code::DatasetMismatch, Code::OutputMissing,
    ]))),
)]
pub(crate) async fn incremental_of(
    service: Service,
    submission: Submission<PathConsumer, ExportOptions>,
) -> Result<Response, Problem> {
    start(&service, submission.asked(&service, ExportType::Incremental)?, "started").await
}

/// Submits an export or a batch. `status` is the word that the call uses for a queued one.
async fn start(service: &Service, asked: Asked, status: &'static str) -> Result<Response, Problem> {
    // The jobs are accepted, so a failure of this look is no failure of the call.
    match asked {
        Asked::Export(request) => {
            let job = submit(service, &request).await?;
            let is_new = service.is_new_consumer(slice::from_ref(&job)).await.unwrap_or_default();
            Ok(accepted(job, is_new, status))
        }
        Asked::Batch(order) => {
            let batch = submit_batch(service, &order).await?;
            let is_new = service.is_new_consumer(&batch.jobs).await.unwrap_or_default();
            Ok(accepted_batch(batch, is_new, status))
        }
    }
}

/// Submits a batch. An unknown dataset in the body is invalid input.
pub(crate) async fn submit_batch(service: &Service, order: &BatchOrder) -> Result<Batch, Problem> {
    match service.submit_batch(order).await {
        Err(error @ service::Error::NoDataset(_)) => {
            Err(Problem::bad_input(Code::MemberInvalid, "datasets", format!("datasets: {error}")))
        }
        done => Ok(done?),
    }
}

/// Request an export again that failed or was cancelled
///
/// The call creates a new job with the same parameters. Its `retryOf` contains the id of the previous job.
#[utoipa::path(
    post, path = "/exports/{jobId}/retry", operation_id = "retryExport", tag = "exports",
    params(Submission<PathJob, EmptyBody>), request_body = EmptyBody, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::NotFailed, Code::BatchMember, Code::TableMissing, Code::PermissionDenied, Code::NotTracked, Code::FullOnly, Code::OutOfStep, Code::DatabaseRestored, Code::NoDataset, Code::TooManyOpenJobs,
        Code::TableUnreadable, Code::DatasetMismatch, Code::OutputMissing,
    ]))),
)]
pub(crate) async fn retry(
    service: Service,
    Submission { target: PathJob(id), key, trace, body: EmptyBody {} }: Submission<PathJob, EmptyBody>,
) -> Result<Response, Problem> {
    Ok(accepted(service.retry(id, key, trace).await?, false, "pending"))
}

/// Submits a request. An unknown dataset in the body is invalid input, so the status is 400 instead of 404.
pub(crate) async fn submit(service: &Service, request: &Request) -> Result<Job, Problem> {
    match service.submit(request).await {
        Err(error @ service::Error::NoDataset(_)) => {
            Err(Problem::bad_input(Code::MemberInvalid, "dataset", format!("dataset: {error}")))
        }
        done => Ok(done?),
    }
}

/// A queued export.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "jobId": "01a1f83b-3f18-718b-bb88-fdeaa3d54f3e", "status": "started", "exportType": "delta",
    "outputFilename": "delta_search_20261120T091314Z.csv"
}))]
pub(crate) struct Submitted {
    /// The export's id
    job_id: Uuid,
    /// `started` if the path determines the type, else `pending`
    #[schema(pattern = "^(started|pending)$")]
    status: &'static str,
    /// The set of rows in the file
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
        let answer = openapi::ResponseBuilder::new()
            .description(
                "The export is queued and survives a crash of this process.\n\nA consumer's position moves when the file is complete, not \
                when it has been loaded. If the client misses this response, the file still exists: a loader continues with \
                `GET /exports?consumer=…&dataset=…&after={jobId}`, where `jobId` is the export that it loaded last. The response has \
                all exports since then, oldest first.",
            )
            .header("Location", location.build())
            .content("application/json", openapi::Content::new(Some(openapi::Schema::OneOf(submitted_schema()))));
        let answer = links.iter().fold(answer, |answer, operation| answer.link(*operation, to(operation).build()));
        BTreeMap::from([("202".to_owned(), answer.build().into())])
    }
}

/// Returns the response for a queued job. `status` is the word that the call uses for this state.
fn accepted(job: Job, is_new: bool, status: &'static str) -> Response {
    let location = [(header::LOCATION, format!("/exports/{}", job.id))];
    let answer = Submitted {
        job_id: job.id.as_uuid(),
        status,
        export_type: job.export_type,
        output_filename: job.output_filename,
        new_consumer: is_new,
    };
    (StatusCode::ACCEPTED, location, Json(answer)).into_response()
}

/// A queued batch.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SubmittedBatch {
    /// The batch's id
    batch_id: Uuid,
    /// `started` if the path determines the type, else `pending`
    #[schema(pattern = "^(started|pending)$")]
    status: &'static str,
    /// The type of its exports
    export_type: ExportType,
    /// The consumer of its exports
    #[schema(value_type = ConsumerId)]
    consumer_id: String,
    /// Its exports, in the order of their datasets' names
    jobs: Vec<SubmittedMember>,
    /// The datasets that `"*"` does not export
    left_out: Vec<LeftOutJson>,
    /// True if the consumer had neither an export nor a watermark before; else it is not there
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    new_consumer: bool,
}

/// A queued export of a batch.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SubmittedMember {
    /// The export's id
    job_id: Uuid,
    /// The dataset's name
    dataset: String,
    /// The type of the export
    export_type: ExportType,
    /// The name of the future file
    output_filename: String,
}

/// Returns the response for a queued batch. `status` is the word that the call uses for this state.
pub(crate) fn accepted_batch(batch: Batch, is_new: bool, status: &'static str) -> Response {
    let location = [(header::LOCATION, format!("/batches/{}", batch.id))];
    let member = |job: Job| SubmittedMember {
        job_id: job.id.as_uuid(),
        dataset: job.dataset,
        export_type: job.export_type,
        output_filename: job.output_filename,
    };
    let answer = SubmittedBatch {
        batch_id: batch.id.as_uuid(),
        status,
        export_type: batch.request.export_type,
        consumer_id: batch.jobs[0].consumer.as_ref().map(ConsumerId::to_string).unwrap_or_default(),
        jobs: batch.jobs.into_iter().map(member).collect(),
        left_out: batch.request.left_out.into_iter().map(LeftOutJson::from).collect(),
        new_consumer: is_new,
    };
    (StatusCode::ACCEPTED, location, Json(answer)).into_response()
}

fn submitted_schema() -> openapi::OneOf {
    let refs = ["Submitted", "SubmittedBatch"].map(openapi::Ref::from_schema_name);
    refs.into_iter().fold(openapi::OneOf::new(), |mut schema, reference| {
        schema.items.push(reference.into());
        schema
    })
}
