//! `/exports/watermark`: where a consumer stands.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use chrono::{DateTime, Datelike, Utc};
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::http::body::JsonBody;
use crate::http::code::Code;
use crate::http::input::Consumer;
use crate::http::problem::Problem;
use crate::http::schemas::DatasetName;
use crate::http::schemas::rfc3339;
use crate::job::lane::Lane;
use crate::service::Service;
use crate::watermark::Watermark;

/// Where a consumer stands.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Watermark, example = json!({
    "consumerId": "search", "lastExportedAt": "2026-11-20T09:13:10.962731Z", "dataset": "users"
}))]
pub(crate) struct WatermarkBody {
    /// Who
    consumer_id: String,
    /// The latest `updated_at` that was exported, or a time that somebody set
    #[schema(format = DateTime)]
    last_exported_at: String,
    /// In which dataset
    dataset: String,
}

/// A watermark to set.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schema(example = json!({ "lastExportedAt": "2026-11-01T00:00:00Z" }))]
pub(crate) struct NewWatermark {
    /// From the year 1 on
    #[serde(deserialize_with = "time")]
    #[schema(value_type = String, format = DateTime)]
    last_exported_at: DateTime<Utc>,
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<DateTime<Utc>, D::Error> {
    let time = String::deserialize(from).ok().and_then(|text| DateTime::parse_from_rfc3339(&text).ok());
    // Postgres has no year 0 and no leap second, which this type has; RFC 3339 has no year of five digits.
    let has_form =
        |time: &DateTime<Utc>| (1..=9999).contains(&time.year()) && time.timestamp_subsec_nanos() < 1_000_000_000;
    let time = time.map(DateTime::<Utc>::from).filter(has_form);
    time.ok_or_else(|| D::Error::custom("an RFC 3339 time is expected"))
}

/// The query of `/exports/watermark`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DatasetQuery {
    /// The dataset of the watermark. Left out, it is `users`, or the only dataset there is
    #[param(required = false, value_type = DatasetName)]
    dataset: Option<String>,
}

impl DatasetQuery {
    fn name(self, service: &Service) -> Result<String, Problem> {
        match self.dataset {
            Some(name) => Ok(name),
            None => {
                let bad = |why| Problem::bad_input(Code::ParameterInvalid, "dataset", format!("dataset: {why}"));
                Ok(service.implied_dataset().map_err(bad)?.name.clone())
            }
        }
    }
}

/// See where a consumer stands
#[utoipa::path(
    get, path = "/exports/watermark", operation_id = "getWatermark", tag = "watermarks",
    params(Consumer, DatasetQuery), responses((status = 200, description = "The watermark.", body = WatermarkBody)),
    extensions(("x-codes" = json!([Code::NoWatermark, Code::NoDataset]))),
)]
pub(crate) async fn get(
    State(service): State<Service>,
    Consumer(consumer): Consumer,
    Query(query): Query<DatasetQuery>,
) -> Result<Json<WatermarkBody>, Problem> {
    let dataset = query.name(&service)?;
    Ok(Json(service.watermark(Lane { consumer: &consumer, dataset: &dataset }).await?.into()))
}

/// Set where a consumer stands
///
/// It is obeyed as it reads: set forward, only later times count once, and the exact rule from then on; set back, the rows since then
/// are exported again.
#[utoipa::path(
    put, path = "/exports/watermark", operation_id = "setWatermark", tag = "watermarks",
    params(Consumer, DatasetQuery), request_body = NewWatermark,
    responses((status = 200, description = "The watermark, as it is now.", body = WatermarkBody)),
    extensions(("x-codes" = json!([Code::NoDataset, Code::NoUpdatedAt, Code::Committing]))),
)]
pub(crate) async fn put(
    State(service): State<Service>,
    Consumer(consumer): Consumer,
    Query(query): Query<DatasetQuery>,
    JsonBody(NewWatermark { last_exported_at }): JsonBody<NewWatermark>,
) -> Result<Json<WatermarkBody>, Problem> {
    Ok(Json(service.set_watermark(consumer, &query.name(&service)?, last_exported_at).await?.into()))
}

/// Forget where a consumer stands
#[utoipa::path(
    delete, path = "/exports/watermark", operation_id = "forgetWatermark", tag = "watermarks",
    params(Consumer, DatasetQuery), responses((status = 204, description = "It has no watermark any more.")),
    extensions(("x-codes" = json!([Code::NoDataset, Code::Committing]))),
)]
pub(crate) async fn delete(
    State(service): State<Service>,
    Consumer(consumer): Consumer,
    Query(query): Query<DatasetQuery>,
) -> Result<StatusCode, Problem> {
    let dataset = query.name(&service)?;
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
