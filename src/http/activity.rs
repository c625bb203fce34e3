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
use crate::job::activity::HourlyExports;
use crate::job::json::rfc3339;
use crate::job::{ConsumerId, Filter};
use crate::service::Service;

/// The query of `/exports/activity`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ActivityQuery {
    /// Exports of this consumer
    #[param(value_type = Option<ConsumerId>, example = "search")]
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
    consumers: Vec<HourlyBody>,
    /// The datasets in the same order, with ad-hoc exports, at most 1,000
    datasets: Vec<HourlyBody>,
}

/// The exports of a consumer or a dataset in each of the 24 hours, by the time when they were requested.
#[derive(Serialize, ToSchema)]
#[schema(as = HourlyExports)]
pub(crate) struct HourlyBody {
    /// The name of the consumer or the dataset
    name: String,
    /// The number of completed exports in each hour. Skipped exports are not counted
    completed: Vec<u64>,
    /// The number of failed exports in each hour
    failed: Vec<u64>,
    /// The rows of the completed exports in each hour
    rows: Vec<u64>,
}

impl From<HourlyExports> for HourlyBody {
    fn from(HourlyExports { name, completed, failed, rows }: HourlyExports) -> HourlyBody {
        HourlyBody { name, completed: completed.into(), failed: failed.into(), rows: rows.into() }
    }
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
    let activity = service.activity(&filter).await?;
    let bodies = |items: Vec<HourlyExports>| items.into_iter().map(HourlyBody::from).collect();
    let (consumers, datasets) = (bodies(activity.consumers), bodies(activity.datasets));
    Ok(Json(ActivityBody { since: rfc3339(activity.since), consumers, datasets }))
}
