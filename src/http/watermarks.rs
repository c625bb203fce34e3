//! `/exports/watermark`: where a consumer stands.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::dataset::USERS;
use crate::http::exports::rfc3339;
use crate::http::input::{Consumer, Members};
use crate::http::problem::Problem;
use crate::service::Service;
use crate::watermark::Watermark;

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
    #[serde(default = "users")]
    dataset: String,
}

/// The dataset that is meant where none is named.
pub(super) fn users() -> String {
    USERS.to_owned()
}

/// `GET /exports/watermark`
pub(crate) async fn get(
    State(service): State<Service>,
    Consumer(consumer): Consumer,
    Query(Of { dataset }): Query<Of>,
) -> Result<Json<WatermarkBody>, Problem> {
    Ok(Json(service.watermark(&consumer, &dataset).await?.into()))
}

/// `PUT /exports/watermark`: sets it by hand.
pub(crate) async fn put(
    State(service): State<Service>,
    Consumer(consumer): Consumer,
    Query(Of { dataset }): Query<Of>,
    mut members: Members,
) -> Result<Json<WatermarkBody>, Problem> {
    let time = members.take_time("lastExportedAt")?;
    members.refuse_others()?;
    Ok(Json(service.set_watermark(consumer, &dataset, time).await?.into()))
}

/// `DELETE /exports/watermark`: forgets it.
pub(crate) async fn delete(
    State(service): State<Service>,
    Consumer(consumer): Consumer,
    Query(Of { dataset }): Query<Of>,
) -> Result<StatusCode, Problem> {
    service.forget_watermark(&consumer, &dataset).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl From<Watermark> for WatermarkBody {
    fn from(watermark: Watermark) -> WatermarkBody {
        WatermarkBody {
            consumer_id: watermark.consumer.to_string(),
            last_exported_at: rfc3339(watermark.last_exported_at),
            dataset: watermark.dataset,
        }
    }
}
