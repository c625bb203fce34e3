//! `/batches`: gets, cancels and retries batches. `exports::submit` accepts requests for new ones.

use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::http::access::RequestSubscriber;
use crate::http::code::Code;
use crate::http::exports::submission::{EmptyBody, Submission};
use crate::http::exports::submit::{LeftOutBody, SubmittedBatch, accepted_batch};
use crate::http::exports::{WaitQuery, wait_of};
use crate::http::input::PathParameter;
use crate::http::problem::Problem;
use crate::job::batch::Batch;
use crate::job::json::JobJson;
use crate::job::{ConsumerId, ExportType, Failure, FailureCode, Job, JobId, Status};
use crate::service::{self, Service};

/// The batch from the path. A malformed id and an unknown batch result in the same response.
pub(crate) struct PathBatch(JobId);

impl<S: Send + Sync> FromRequestParts<S> for PathBatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<PathBatch, Problem> {
        let PathParameter(id) = PathParameter::from_request_parts(parts, state).await?;
        Ok(PathBatch(Uuid::try_parse(&id).map_err(|_| service::Error::NoBatch)?.into()))
    }
}

impl IntoParams for PathBatch {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let schema =
            ObjectBuilder::new().schema_type(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)));
        let parameter =
            ParameterBuilder::new().name("batchId").parameter_in(ParameterIn::Path).required(Required::True);
        let parameter = parameter.description(Some("The id returned by the call that requested the batch"));
        vec![parameter.schema(Some(schema)).example(Some("01a1f83b-3f18-718b-bb88-fdeaa3d54f3e".into())).build()]
    }
}

/// A batch: exports of several datasets, read at one snapshot and completed together or not at all.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Batch)]
pub(crate) struct BatchBody {
    /// The batch's id, which is that of its first export
    batch_id: Uuid,
    /// The consumer of its exports
    #[schema(value_type = ConsumerId)]
    consumer_id: String,
    /// The type of its exports. One that was healed has the type `full`
    export_type: ExportType,
    /// True if an export that can't go on becomes a full one
    heal: bool,
    /// `completed` when the files of all exports are published
    status: Status,
    /// The mean of its exports' progress in percent: 100 only when completed
    #[schema(maximum = 100)]
    progress: u8,
    /// Rows of all exports so far
    rows_exported: u64,
    /// Bytes of all exports so far
    bytes_written: u64,
    /// Why the batch failed
    #[schema(required)]
    error: Option<BatchFailure>,
    /// The batch that this one repeats, on request
    #[schema(required)]
    retry_of: Option<Uuid>,
    /// Its exports, in the order of their datasets' names
    jobs: Vec<JobJson>,
    /// The datasets that `"*"` did not export
    left_out: Vec<LeftOutBody>,
}

/// Why a batch failed.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchFailure {
    /// The reason as a word, for programs
    code: FailureCode,
    /// The reason as a sentence, for people
    detail: String,
    /// The dataset whose export ended the batch; null if the reason concerns all of them
    #[schema(required)]
    member: Option<String>,
}

impl From<Batch> for BatchBody {
    fn from(batch: Batch) -> BatchBody {
        let status = batch.status();
        let Batch { id, jobs, request } = batch;
        let progress = jobs.iter().map(|job| usize::from(job.progress)).sum::<usize>() / jobs.len();
        BatchBody {
            batch_id: id.as_uuid(),
            consumer_id: jobs[0].consumer.as_ref().map(ConsumerId::to_string).unwrap_or_default(),
            export_type: request.export_type,
            heal: request.heals,
            status,
            progress: progress as u8,
            rows_exported: jobs.iter().map(|job| job.rows_exported).sum(),
            bytes_written: jobs.iter().map(|job| job.bytes_written).sum(),
            error: failure_of(&jobs),
            retry_of: request.retry_of.map(JobId::as_uuid),
            jobs: jobs.into_iter().map(JobJson::from).collect(),
            left_out: request.left_out.into_iter().map(LeftOutBody::from).collect(),
        }
    }
}

/// Returns the failure of the export that ended the batch.
fn failure_of(jobs: &[Job]) -> Option<BatchFailure> {
    let failed = |job: &Job| job.error.as_ref().is_some_and(|error| error.code != FailureCode::BatchMemberFailed);
    let cause = jobs.iter().find(|job| failed(job))?;
    let Failure { code, detail, .. } = cause.error.clone()?;
    let concerns_one = jobs.iter().filter(|job| failed(job)).count() < jobs.len();
    Some(BatchFailure { code, detail, member: concerns_one.then(|| cause.dataset.clone()) })
}

/// Get a batch
#[utoipa::path(
    get, path = "/batches/{batchId}", operation_id = "getBatch", tag = "exports",
    params(PathBatch, WaitQuery), responses((status = 200, description = "The batch.", body = BatchBody)),
    extensions(("x-codes" = json!([Code::TooManyFollowers]))),
)]
pub(crate) async fn get(
    service: Service,
    PathBatch(id): PathBatch,
    RequestSubscriber(subscriber): RequestSubscriber,
    Query(query): Query<WaitQuery>,
) -> Result<Json<BatchBody>, Problem> {
    let wait = wait_of(query)?.unwrap_or(Duration::ZERO);
    Ok(Json(service.ended_batch(id, wait, subscriber).await?.into()))
}

/// Cancel a batch
#[utoipa::path(
    post, path = "/batches/{batchId}/cancel", operation_id = "cancelBatch", tag = "exports",
    params(PathBatch),
    responses(
        (status = 202, description = "The batch is cancelled, or will be in a moment.", body = BatchBody),
        (status = 200, description = "The batch was cancelled before.", body = BatchBody),
    ),
    extensions(("x-codes" = json!([Code::Committing, Code::AlreadyEnded]))),
)]
pub(crate) async fn cancel(service: Service, PathBatch(id): PathBatch) -> Result<Response, Problem> {
    let (batch, already) = service.cancel_batch(id).await?;
    let status = if already { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(BatchBody::from(batch))).into_response())
}

/// Request a batch again that failed or was cancelled
///
/// The call creates a new batch with the same parameters. Its `retryOf` contains the id of the previous batch.
#[utoipa::path(
    post, path = "/batches/{batchId}/retry", operation_id = "retryBatch", tag = "exports",
    params(Submission<PathBatch, EmptyBody>), request_body = EmptyBody,
    responses((status = 202, description = "The batch is queued and survives a crash of this process.", body = SubmittedBatch)),
    extensions(("x-codes" = json!([
        Code::NotFailed, Code::TableMissing, Code::PermissionDenied, Code::NotTracked, Code::FullOnly, Code::OutOfStep, Code::DatabaseRestored, Code::NoDataset, Code::TooManyOpenJobs,
        Code::TableUnreadable, Code::DatasetMismatch,
    ]))),
)]
pub(crate) async fn retry(
    service: Service,
    Submission { target: PathBatch(id), key, trace, body: EmptyBody {} }: Submission<PathBatch, EmptyBody>,
) -> Result<Response, Problem> {
    Ok(accepted_batch(service.retry_batch(id, key, trace).await?, "pending"))
}
