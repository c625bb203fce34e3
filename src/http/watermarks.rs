//! `/exports/watermark`: a consumer's watermark in a dataset.

use axum::Json;
use axum::extract::Query;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::http::code::Code;
use crate::http::input::{Consumer, dataset_or_implied};
use crate::http::problem::Problem;
use crate::http::schemas::DatasetName;
use crate::job::json::rfc3339;
use crate::service::Service;
use cdc_manifest::Lane;

/// A consumer's watermark in a dataset.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Watermark, example = json!({
    "consumerId": "search", "lastExportedAt": "2026-11-20T09:13:10.962731Z", "dataset": "users"
}))]
pub(crate) struct WatermarkBody {
    /// The consumer's id
    consumer_id: String,
    /// The latest exported `updated_at`, or the time that somebody wrote into the table `watermarks`
    #[schema(format = DateTime)]
    last_exported_at: String,
    /// The dataset's name
    dataset: String,
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
    let dataset = dataset_or_implied(&service, query.dataset, Problem::bad_parameter)?;
    let last_exported_at = service.watermark(Lane { consumer: &consumer, dataset: &dataset }).await?;
    Ok(Json(WatermarkBody { consumer_id: consumer.to_string(), last_exported_at: rfc3339(last_exported_at), dataset }))
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
    let dataset = dataset_or_implied(&service, query.dataset, Problem::bad_parameter)?;
    service.forget_watermark(Lane { consumer: &consumer, dataset: &dataset }).await?;
    Ok(StatusCode::NO_CONTENT)
}
