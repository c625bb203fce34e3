//! `/deliveries`: lists the deliveries of events to receivers, and redelivers an event.

use axum::Json;
use axum::extract::Query;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::event::{Delivery, DeliveryFilter, DeliveryStatus};
use crate::http::code::Code;
use crate::http::input::PathParameter;
use crate::http::pages::{self, Page};
use crate::http::problem::Problem;
use crate::http::query;
use crate::job::json::rfc3339;
use crate::service::{self, Service};
use cdc_manifest::is_dataset_name;

/// The query of `/deliveries`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeliveryQuery {
    /// Deliveries with this status
    #[param(value_type = Option<DeliveryStatus>)]
    status: Option<String>,
    /// Deliveries to the receiver of this name
    #[param(pattern = "^[a-z][a-z0-9_-]{0,62}$", example = "airflow")]
    endpoint: Option<String>,
    /// Maximum number of items; the default is 50
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Option<String>,
    /// The `nextCursor` of the previous page
    cursor: Option<String>,
}

/// The delivery of one event to one receiver.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Delivery, example = json!({
    "deliveryId": "01a1f83b-6d1e-7c1a-9d4e-2f6f1f0c9a11", "endpoint": "airflow", "event": "export.completed",
    "jobId": "01a1f83b-4327-76af-8511-139e6c6a362d", "status": "pending", "attempt": 2, "nextAttemptAt": "2026-11-20T09:13:50.958121Z",
    "lastStatus": 503, "lastError": "it answered 503", "createdAt": "2026-11-20T09:13:15.958121Z", "endedAt": null
}))]
pub(crate) struct DeliveryBody {
    /// The id of the delivery and of its event (`id`, `webhook-id`); the same in each attempt
    delivery_id: Uuid,
    /// The receiver's name in the operator's file
    endpoint: String,
    /// The event's type
    #[schema(pattern = r"^export\.(completed|skipped|failed|cancelled)$")]
    event: String,
    /// The job that ended
    job_id: Uuid,
    /// The delivery's status
    status: DeliveryStatus,
    /// The number of attempts that have ended since the delivery was created or requested again
    attempt: u32,
    /// The time of the next attempt; null if there is none
    #[schema(required, format = DateTime)]
    next_attempt_at: Option<String>,
    /// The HTTP status of the last response; null if there was none
    #[schema(required)]
    last_status: Option<u16>,
    /// The error of the last attempt; null if there was none
    #[schema(required)]
    last_error: Option<String>,
    /// The time when the job ended
    #[schema(format = DateTime)]
    created_at: String,
    /// The time when the receiver accepted the event or the service gave up
    #[schema(required, format = DateTime)]
    ended_at: Option<String>,
}

impl From<Delivery> for DeliveryBody {
    fn from(delivery: Delivery) -> DeliveryBody {
        DeliveryBody {
            delivery_id: delivery.id,
            endpoint: delivery.endpoint,
            event: delivery.event.name(),
            job_id: delivery.job.as_uuid(),
            status: delivery.status,
            attempt: delivery.attempt,
            next_attempt_at: delivery.next_attempt_at.map(rfc3339),
            last_status: delivery.last_status,
            last_error: delivery.last_error,
            created_at: rfc3339(delivery.created_at),
            ended_at: delivery.ended_at.map(rfc3339),
        }
    }
}

/// List deliveries of events to receivers, newest first
#[utoipa::path(
    get, path = "/deliveries", operation_id = "listDeliveries", tag = "deliveries",
    params(DeliveryQuery), responses((status = 200, description = "A page.", body = Page<DeliveryBody>)),
    extensions(("x-codes" = json!([Code::ConsumerNotAllowed]))),
)]
pub(crate) async fn list(
    service: Service,
    Query(query): Query<DeliveryQuery>,
) -> Result<Json<Page<DeliveryBody>>, Problem> {
    // The list includes the exports of all consumers.
    service.require_consumer(None)?;
    let limit = pages::limit(query.limit.as_deref())?;
    let before = query.cursor.map(|cursor| cursor.parse::<Uuid>().map_err(|_| pages::bad_cursor())).transpose()?;
    if query.endpoint.as_deref().is_some_and(|name| !is_dataset_name(name)) {
        return Err(Problem::bad_parameter("endpoint", "the name of a webhook or an amqp is expected"));
    }
    let filter = DeliveryFilter { status: query::word("status", query.status)?, endpoint: query.endpoint, before };
    let deliveries = service.deliveries(&filter, limit + 1).await?;
    Ok(Json(Page::new(deliveries, limit, |delivery| delivery.id.to_string(), DeliveryBody::from)))
}

/// Deliver an event to a receiver again
///
/// Works regardless of the delivery's status. The service delivers the event within seconds, under the same id. If that
/// fails, the service retries as often as for a new event.
#[utoipa::path(
    post, path = "/deliveries/{deliveryId}/redeliver", operation_id = "redeliver", tag = "deliveries",
    params(("deliveryId" = Uuid, Path, description = "The delivery's id", example = "01a1f83b-6d1e-7c1a-9d4e-2f6f1f0c9a11")),
    responses((status = 202, description = "The delivery is due.", body = DeliveryBody)),
    extensions(("x-codes" = json!([Code::NotFound, Code::NoEndpoint, Code::ConsumerNotAllowed]))),
)]
pub(crate) async fn redeliver(
    service: Service,
    PathParameter(id): PathParameter,
) -> Result<(StatusCode, Json<DeliveryBody>), Problem> {
    service.require_consumer(None)?;
    let id = Uuid::try_parse(&id).map_err(|_| service::Error::NoDelivery)?;
    Ok((StatusCode::ACCEPTED, Json(service.redeliver(id).await?.into())))
}
