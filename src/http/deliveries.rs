//! `/deliveries`: what receivers were told of ended exports, and telling them again.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::dataset::name::is_name;
use crate::event::{self, Delivery, DeliveryFilter, DeliveryStatus};
use crate::http::access::Caller;
use crate::http::code::Code;
use crate::http::input::PathParameter;
use crate::http::pages::{self, Page};
use crate::http::problem::Problem;
use crate::http::query;
use crate::job::json::rfc3339;
use crate::service::{self, Service};

/// The query of `/deliveries`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeliveryQuery {
    /// Deliveries that stand so
    #[param(value_type = Option<DeliveryStatus>)]
    status: Option<String>,
    /// Deliveries to the receiver of this name
    #[param(pattern = "^[a-z][a-z0-9_-]{0,62}$", example = "airflow")]
    endpoint: Option<String>,
    /// At most this many; 50 if left out
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Option<String>,
    /// The `nextCursor` of the page before
    cursor: Option<String>,
}

/// The telling of one event to one receiver.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Delivery, example = json!({
    "deliveryId": "01a1f83b-6d1e-7c1a-9d4e-2f6f1f0c9a11", "endpoint": "airflow", "event": "export.completed",
    "jobId": "01a1f83b-4327-76af-8511-139e6c6a362d", "status": "pending", "attempt": 2, "nextAttemptAt": "2026-11-20T09:13:50.958121Z",
    "lastStatus": 503, "lastError": "it answered 503", "createdAt": "2026-11-20T09:13:15.958121Z", "endedAt": null
}))]
pub(crate) struct DeliveryBody {
    /// The delivery's id, which is the event's too (`id`, `webhook-id`): the same at each try
    delivery_id: Uuid,
    /// The receiver's name in the operator's file
    endpoint: String,
    /// What the event tells
    #[schema(pattern = r"^export\.(completed|failed|cancelled)$")]
    event: String,
    /// The export that ended
    job_id: Uuid,
    /// How the telling stands
    status: DeliveryStatus,
    /// How many tries have ended since it was made or asked for again
    attempt: u32,
    /// When it is told next; null: never
    #[schema(required, format = DateTime)]
    next_attempt_at: Option<String>,
    /// The status of the last answer; null: there was none
    #[schema(required)]
    last_status: Option<u16>,
    /// What was wrong with the last try; null: nothing
    #[schema(required)]
    last_error: Option<String>,
    /// When the export ended
    #[schema(format = DateTime)]
    created_at: String,
    /// When the receiver took it, or it was given up
    #[schema(required, format = DateTime)]
    ended_at: Option<String>,
}

impl From<Delivery> for DeliveryBody {
    fn from(delivery: Delivery) -> DeliveryBody {
        DeliveryBody {
            delivery_id: delivery.id,
            endpoint: delivery.endpoint,
            event: event::event_name(delivery.event),
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

/// List the events that receivers were told of, or are to be told of, newest first
#[utoipa::path(
    get, path = "/deliveries", operation_id = "listDeliveries", tag = "deliveries",
    params(DeliveryQuery), responses((status = 200, description = "A page.", body = Page<DeliveryBody>)),
    extensions(("x-codes" = json!([Code::ConsumerNotAllowed]))),
)]
pub(crate) async fn list(
    State(service): State<Service>,
    caller: Caller,
    Query(query): Query<DeliveryQuery>,
) -> Result<Json<Page<DeliveryBody>>, Problem> {
    // Of every consumer's exports.
    caller.require(None)?;
    let limit = pages::limit(query.limit.as_deref())?;
    let before = query.cursor.map(|cursor| cursor.parse::<Uuid>().map_err(|_| pages::bad_cursor())).transpose()?;
    if query.endpoint.as_deref().is_some_and(|name| !is_name(name)) {
        return Err(Problem::bad_parameter("endpoint", "the name of a webhook or an amqp is expected"));
    }
    let filter = DeliveryFilter { status: query::word("status", query.status)?, endpoint: query.endpoint, before };
    let deliveries = service.deliveries(&filter, limit + 1).await?;
    Ok(Json(Page::new(deliveries, limit, |delivery| delivery.id.to_string(), DeliveryBody::from)))
}

/// Tell a receiver of an event again
///
/// Whatever became of it before. It is told within seconds, under the same id, and then tried as often as a new one.
#[utoipa::path(
    post, path = "/deliveries/{deliveryId}/redeliver", operation_id = "redeliver", tag = "deliveries",
    params(("deliveryId" = Uuid, Path, description = "The delivery's id", example = "01a1f83b-6d1e-7c1a-9d4e-2f6f1f0c9a11")),
    responses((status = 202, description = "It is due.", body = DeliveryBody)),
    extensions(("x-codes" = json!([Code::NotFound, Code::NoEndpoint, Code::ConsumerNotAllowed]))),
)]
pub(crate) async fn redeliver(
    State(service): State<Service>,
    caller: Caller,
    PathParameter(id): PathParameter,
) -> Result<(StatusCode, Json<DeliveryBody>), Problem> {
    caller.require(None)?;
    let id = Uuid::try_parse(&id).map_err(|_| service::Error::NoDelivery)?;
    Ok((StatusCode::ACCEPTED, Json(service.redeliver(id).await?.into())))
}
