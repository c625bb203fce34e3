//! `/exports/watermark`: a consumer's watermark in a dataset.

use axum::Json;
use axum::extract::Query;
use axum::http::StatusCode;
use chrono::{DateTime, Datelike, Utc};
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::http::body::JsonBody;
use crate::http::code::Code;
use crate::http::input::{Consumer, dataset_or_implied};
use crate::http::problem::Problem;
use crate::http::schemas::DatasetName;
use crate::job::json::rfc3339;
use crate::job::lane::Lane;
use crate::service::Service;
use crate::watermark::Watermark;

/// A consumer's watermark in a dataset.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Watermark, example = json!({
    "consumerId": "search", "lastExportedAt": "2026-11-20T09:13:10.962731Z", "dataset": "users"
}))]
pub(crate) struct WatermarkBody {
    /// The consumer's id
    consumer_id: String,
    /// The latest exported `updated_at`, or the time set by a client
    #[schema(format = DateTime)]
    last_exported_at: String,
    /// The dataset's name
    dataset: String,
}

/// The new value of a watermark.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schema(example = json!({ "lastExportedAt": "2026-11-01T00:00:00Z" }))]
pub(crate) struct NewWatermark {
    /// The new watermark, not before the year 1
    #[serde(deserialize_with = "time")]
    #[schema(value_type = String, format = DateTime)]
    last_exported_at: DateTime<Utc>,
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<DateTime<Utc>, D::Error> {
    let time = String::deserialize(from).ok().and_then(|text| DateTime::parse_from_rfc3339(&text).ok());
    // `DateTime` supports a year 0 and leap seconds, which Postgres does not. RFC 3339 does not allow years of five
    // digits.
    let has_form =
        |time: &DateTime<Utc>| (1..=9999).contains(&time.year()) && time.timestamp_subsec_nanos() < 1_000_000_000;
    let time = time.map(DateTime::<Utc>::from).filter(has_form);
    time.ok_or_else(|| D::Error::custom("an RFC 3339 time is expected"))
}

/// The query of `/exports/watermark`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DatasetQuery {
    /// The dataset of the watermark. The default is `users`, or the only dataset
    #[param(required = false, value_type = DatasetName)]
    dataset: Option<String>,
}

/// Get a consumer's watermark
#[utoipa::path(
    get, path = "/exports/watermark", operation_id = "getWatermark", tag = "watermarks",
    params(Consumer, DatasetQuery), responses((status = 200, description = "The watermark.", body = WatermarkBody)),
    extensions(("x-codes" = json!([Code::NoWatermark, Code::NoDataset]))),
)]
pub(crate) async fn get(
    service: Service,
    Consumer(consumer): Consumer,
    Query(query): Query<DatasetQuery>,
) -> Result<Json<WatermarkBody>, Problem> {
    let dataset = dataset_or_implied(&service, query.dataset)?;
    Ok(Json(service.watermark(Lane { consumer: &consumer, dataset: &dataset }).await?.into()))
}

/// Set a consumer's watermark
///
/// Moving a watermark forward skips rows: the next export contains only rows with later times. Exports after that one
/// are complete again. Moving a watermark back exports the rows since then again.
#[utoipa::path(
    put, path = "/exports/watermark", operation_id = "setWatermark", tag = "watermarks",
    params(Consumer, DatasetQuery), request_body = NewWatermark,
    responses((status = 200, description = "The new watermark.", body = WatermarkBody)),
    extensions(("x-codes" = json!([Code::NoDataset, Code::NoUpdatedAt, Code::Committing]))),
)]
pub(crate) async fn put(
    service: Service,
    Consumer(consumer): Consumer,
    Query(query): Query<DatasetQuery>,
    JsonBody(NewWatermark { last_exported_at }): JsonBody<NewWatermark>,
) -> Result<Json<WatermarkBody>, Problem> {
    Ok(Json(
        service.set_watermark(consumer, &dataset_or_implied(&service, query.dataset)?, last_exported_at).await?.into(),
    ))
}

/// Delete a consumer's watermark
#[utoipa::path(
    delete, path = "/exports/watermark", operation_id = "forgetWatermark", tag = "watermarks",
    params(Consumer, DatasetQuery), responses((status = 204, description = "The consumer no longer has a watermark.")),
    extensions(("x-codes" = json!([Code::NoDataset, Code::Committing]))),
)]
pub(crate) async fn delete(
    service: Service,
    Consumer(consumer): Consumer,
    Query(query): Query<DatasetQuery>,
) -> Result<StatusCode, Problem> {
    let dataset = dataset_or_implied(&service, query.dataset)?;
    service.forget_watermark(Lane { consumer: &consumer, dataset: &dataset }).await?;
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
