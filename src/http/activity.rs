//! `/exports/activity`: the exports of the last day, counted by the hour.

use axum::Json;
use axum::extract::Query;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::http::code::Code;
use crate::http::input::dataset;
use crate::http::problem::Problem;
use crate::http::query;
use crate::http::schemas::DatasetName;
use crate::job::Filter;
use crate::job::activity::{HourlyExports, LastDay};
use crate::job::json::{ConsumerSchema, rfc3339};
use crate::service::Service;

/// The query of `/exports/activity`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ActivityQuery {
    /// Exports of this consumer
    #[param(value_type = Option<ConsumerSchema>, example = "search")]
    consumer: Option<String>,
    /// Exports of this dataset
    #[param(value_type = Option<DatasetName>, example = "users")]
    dataset: Option<String>,
}

/// The exports of the last day by consumer and by dataset.
#[derive(Serialize, ToSchema)]
#[schema(as = Activity)]
pub(crate) struct ActivityBody {
    /// The beginning of the first of the 24 hours. The last one is the current hour
    #[schema(format = DateTime)]
    since: String,
    /// The consumers: those with the most failures first, then those with the most exports, at most 1,000
    consumers: Vec<HourlyExports>,
    /// The datasets in the same order, with ad-hoc exports, at most 1,000
    datasets: Vec<HourlyExports>,
}

/// Count the exports of the last day by the hour
///
/// Counts the newest 100,000 of each type and status that are kept.
#[utoipa::path(
    get, path = "/exports/activity", operation_id = "getActivity", tag = "exports",
    params(ActivityQuery), responses((status = 200, description = "The counts.", body = ActivityBody)),
    extensions(("x-codes" = json!([Code::DatasetNotAllowed]))),
)]
pub(crate) async fn get(service: Service, Query(query): Query<ActivityQuery>) -> Result<Json<ActivityBody>, Problem> {
    let filter = Filter {
        consumer: query::word("consumer", query.consumer)?,
        dataset: query.dataset.map(dataset).transpose()?,
        ..Filter::default()
    };
    let LastDay { since, consumers, datasets } = service.activity(&filter).await?;
    Ok(Json(ActivityBody { since: rfc3339(since), consumers, datasets }))
}
