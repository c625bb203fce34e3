//! `/batches`: gets, cancels and retries batches. `exports::submit` accepts requests for new ones.

use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use uuid::Uuid;

use crate::http::access::RequestSubscriber;
use crate::http::code::Code;
use crate::http::exports::submission::{EmptyBody, Submission};
use crate::http::exports::submit::{SubmittedBatch, accepted_batch};
use crate::http::exports::{WaitQuery, wait_of};
use crate::http::input::PathParameter;
use crate::http::problem::Problem;
use crate::job::JobId;
use crate::job::batch_json::BatchJson;
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

/// Get a batch
#[utoipa::path(
    get, path = "/batches/{batchId}", operation_id = "getBatch", tag = "exports",
    params(PathBatch, WaitQuery), responses((status = 200, description = "The batch.", body = BatchJson)),
    extensions(("x-codes" = json!([Code::TooManyFollowers]))),
)]
pub(crate) async fn get(
    service: Service,
    PathBatch(id): PathBatch,
    RequestSubscriber(subscriber): RequestSubscriber,
    Query(query): Query<WaitQuery>,
) -> Result<Json<BatchJson>, Problem> {
    let wait = wait_of(query)?.unwrap_or(Duration::ZERO);
    Ok(Json(service.ended_batch(id, wait, subscriber).await?.into()))
}

/// Cancel a batch
#[utoipa::path(
    post, path = "/batches/{batchId}/cancel", operation_id = "cancelBatch", tag = "exports",
    params(PathBatch),
    responses(
        (status = 202, description = "The batch is cancelled, or will be in a moment.", body = BatchJson),
        (status = 200, description = "The batch was cancelled before.", body = BatchJson),
    ),
    extensions(("x-codes" = json!([Code::Committing, Code::AlreadyEnded]))),
)]
pub(crate) async fn cancel(service: Service, PathBatch(id): PathBatch) -> Result<Response, Problem> {
    let (batch, already) = service.cancel_batch(id).await?;
    let status = if already { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(BatchJson::from(batch))).into_response())
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
        Code::TableUnreadable, Code::DatasetMismatch, Code::OutputMissing,
    ]))),
)]
pub(crate) async fn retry(
    service: Service,
    Submission { target: PathBatch(id), key, trace, body: EmptyBody {} }: Submission<PathBatch, EmptyBody>,
) -> Result<Response, Problem> {
    Ok(accepted_batch(service.retry_batch(id, key, trace).await?, false, "pending"))
}
