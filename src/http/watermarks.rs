//! `/exports/watermark`: where a consumer stands.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

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

/// `GET /exports/watermark`
pub(crate) async fn get(
    State(service): State<Service>,
    Consumer(consumer): Consumer,
) -> Result<Json<WatermarkBody>, Problem> {
    let watermark = service.watermark(&consumer).await?;
    Ok(Json(WatermarkBody {
        consumer_id: watermark.consumer.to_string(),
        last_exported_at: rfc3339(watermark.last_exported_at),
        dataset: watermark.dataset,
    }))
}
