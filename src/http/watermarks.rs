//! `/exports/watermark`: where a consumer stands.

use axum::Json;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};

use crate::dataset::USERS;
use crate::http::exports::rfc3339;
use crate::http::input::Consumer;
use crate::http::problem::Problem;
use crate::service::Service;

/// A watermark as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WatermarkBody {
    consumer_id: String,
    last_exported_at: String,
    dataset: String,
}

/// The query of `/exports/watermark`.
#[derive(Deserialize)]
pub(crate) struct Of {
    dataset: Option<String>,
}

/// `GET /exports/watermark`
pub(crate) async fn get(
    State(service): State<Service>,
    Consumer(consumer): Consumer,
    Query(Of { dataset }): Query<Of>,
) -> Result<Json<WatermarkBody>, Problem> {
    if dataset.is_some_and(|name| name != USERS.name) {
        return Err(Problem::not_found("there is no dataset of this name"));
    }
    let watermark = service.watermark(&consumer).await?;
    Ok(Json(WatermarkBody {
        consumer_id: watermark.consumer.to_string(),
        last_exported_at: rfc3339(watermark.last_exported_at),
        dataset: watermark.dataset,
    }))
}
