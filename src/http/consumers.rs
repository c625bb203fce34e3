//! `/consumers`: the watermarks and the states of all consumers.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::Query;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::freshness::{self, LaneState};
use crate::http::code::Code;
use crate::http::input::PathParameter;
use crate::http::pages::{self, Page};
use crate::http::problem::Problem;
use crate::http::query;
use crate::job::json::{ConsumerSchema, ContinuitySchema, JobJson, rfc3339};
use crate::service::Service;
use crate::service::consumers::ListedConsumer;
use cdc_capture::Continuity;
use cdc_manifest::{ConsumerId, Lane, is_dataset_name};

/// The query of `/consumers`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ConsumerQuery {
    /// Only this consumer, in each of its datasets
    #[param(value_type = Option<ConsumerSchema>)]
    consumer: Option<String>,
    /// Maximum number of items; the default is 50
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Option<String>,
    /// The `nextCursor` of the previous page
    cursor: Option<String>,
}

/// A consumer's watermark and state in a dataset.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Consumer)]
pub(crate) struct ConsumerBody {
    /// The consumer's id
    consumer_id: String,
    /// The dataset's name
    dataset: String,
    /// The method of change capture: `triggers`, `timestamp` or `none`; null if there is no such dataset any more
    #[schema(required, pattern = "^(triggers|timestamp|none)$")]
    capture: Option<&'static str>,
    /// The consumer's watermark
    #[schema(required, format = DateTime)]
    last_exported_at: Option<String>,
    /// The time when the table was read. It is older than the answer if reading takes long
    #[schema(format = DateTime)]
    as_of: String,
    /// `fresh`, `behind`, `failing`, `not_published`, `needs_full`, `not_tracked`, `not_loaded`, `new`, or `gone` if
    /// there is no such dataset any more; null if it cannot be told now
    #[schema(required, pattern = "^(fresh|new|gone|not_loaded|behind|not_tracked|needs_full|not_published|failing)$")]
    state: Option<&'static str>,
    /// The age in seconds of the oldest committed change that no export has; 0 if there is none, null if there
    /// was no export or it is unknown
    #[schema(required)]
    behind_seconds: Option<u64>,
    /// The number of exports that failed since the last completed one, exact up to 1,000
    #[schema(maximum = 1000)]
    failures: u64,
    /// The time of the first of the `failures`; null if there is none
    #[schema(required, format = DateTime)]
    failing_since: Option<String>,
    /// The condition, other than changes, between the consumer's last export and the next; null if there is none
    #[schema(required)]
    #[schema(value_type = Option<ContinuitySchema>)]
    continuity: Option<Continuity>,
    /// The consumer's last export
    #[schema(required)]
    last_job: Option<JobJson>,
    /// The number of kept exports published after the last acknowledged one, exact up to 1,000; null if the consumer
    /// has never acknowledged an export of the dataset
    #[schema(required, maximum = 1000)]
    unacknowledged: Option<u64>,
    /// The time when the oldest of the `unacknowledged` exports was published; null if there is none
    #[schema(required, format = DateTime)]
    unacknowledged_since: Option<String>,
    /// The estimated bytes of the change log that are kept for the consumer; null if none are, or if they are unknown
    #[schema(required)]
    log_bytes: Option<u64>,
    /// The number of bytes above which the consumer may lose its part of the change log, if other tables keep as much
    /// as now; null if `logBytes` is null
    #[schema(required)]
    log_bytes_max: Option<u64>,
}

/// List consumers with their watermarks
///
/// In the order of the consumers' ids.
#[utoipa::path(
    get, path = "/consumers", operation_id = "listConsumers", tag = "watermarks",
    params(ConsumerQuery), responses((status = 200, description = "A page.", body = Page<ConsumerBody>)),
    extensions(("x-codes" = json!([Code::TableUnreadable]))),
)]
pub(crate) async fn list(
    service: Service,
    Query(query): Query<ConsumerQuery>,
) -> Result<Json<Page<ConsumerBody>>, Problem> {
    let limit = pages::limit(query.limit.as_deref())?;
    let after = query.cursor.as_deref().map(read_cursor).transpose()?;
    let after = after.as_ref().map(|(consumer, dataset)| Lane { consumer, dataset });
    let one: Option<ConsumerId> = query::word("consumer", query.consumer)?;
    let consumers = service.consumers(after, one, limit + 1).await?;
    let cursor_of = |ListedConsumer { lag, .. }: &ListedConsumer| format!("{}/{}", lag.consumer, lag.dataset);
    let body = |listed: ListedConsumer| {
        let dataset = service.dataset(&listed.lag.dataset).ok();
        body(listed, dataset.map(|dataset| dataset.capture.as_str()))
    };
    Ok(Json(Page::new(consumers, limit, cursor_of, body)))
}

/// A consumer over all its datasets.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ConsumerSummary)]
pub(crate) struct SummaryBody {
    /// The consumer's id
    consumer_id: String,
    /// The most urgent state among its datasets; null if one is unknown and no other state is urgent
    #[schema(required, pattern = "^(fresh|new|gone|not_loaded|behind|not_tracked|needs_full|not_published|failing)$")]
    state: Option<&'static str>,
    /// The number of its datasets
    datasets: u64,
    /// The number of datasets in each state that one of them has
    states: BTreeMap<&'static str, u64>,
    /// The largest `behindSeconds` of its datasets; null if one is unknown although there was an export
    #[schema(required)]
    behind_seconds: Option<u64>,
    /// The time of the oldest read of a table
    #[schema(format = DateTime)]
    as_of: String,
    /// The number of exports that failed since the last completed ones
    failures: u64,
    /// The time of the first of the `failures`; null if there is none
    #[schema(required, format = DateTime)]
    failing_since: Option<String>,
}

/// Get a consumer over all its datasets
#[utoipa::path(
    get, path = "/consumers/{consumerId}", operation_id = "getConsumer", tag = "watermarks",
    params(("consumerId" = ConsumerSchema, Path, description = "The consumer")),
    responses((status = 200, description = "The consumer.", body = SummaryBody)),
    extensions(("x-codes" = json!([Code::TableUnreadable]))),
)]
pub(crate) async fn get(service: Service, PathParameter(id): PathParameter) -> Result<Json<SummaryBody>, Problem> {
    let consumer = consumer_of(&service, &id)?;
    let lanes = service.consumer(&consumer).await?;
    // A dataset without an export has no age. One unknown age makes the largest unknown.
    let has_age = |listed: &&ListedConsumer| {
        listed.behind.is_some() || listed.history.completed_at.is_some() && listed.state != Some(LaneState::Gone)
    };
    let ages: Option<Vec<_>> = lanes.iter().filter(has_age).map(|listed| listed.behind).collect();
    let mut states = BTreeMap::new();
    for state in lanes.iter().filter_map(|listed| listed.state) {
        *states.entry(state.as_str()).or_default() += 1;
    }
    Ok(Json(SummaryBody {
        consumer_id: consumer.to_string(),
        state: freshness::of_all(lanes.iter().map(|listed| listed.state)).map(LaneState::as_str),
        datasets: lanes.len() as u64,
        states,
        behind_seconds: ages.and_then(|ages| ages.into_iter().max()).map(|age| age.as_secs()),
        as_of: rfc3339(lanes.iter().map(|listed| listed.as_of).min().unwrap_or_default()),
        failures: lanes.iter().map(|listed| listed.history.failures).sum(),
        failing_since: lanes.iter().filter_map(|listed| listed.history.failing_since).min().map(rfc3339),
    }))
}

/// Remove a consumer
///
/// Forgets its positions in all datasets that the key may see, and takes it out of the lists. Files and jobs stay until
/// retention removes them. The next export under this name is a first one.
#[utoipa::path(
    delete, path = "/consumers/{consumerId}", operation_id = "removeConsumer", tag = "watermarks",
    params(("consumerId" = ConsumerSchema, Path, description = "The consumer")),
    responses((status = 204, description = "The consumer is removed.")),
    extensions(("x-codes" = json!([Code::StillOpen]))),
)]
pub(crate) async fn delete(service: Service, PathParameter(id): PathParameter) -> Result<StatusCode, Problem> {
    service.remove_consumer(&consumer_of(&service, &id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Parses a consumer of a path, which the caller may see.
fn consumer_of(service: &Service, id: &str) -> Result<ConsumerId, Problem> {
    let bad = |why| Problem::bad_input(Code::ConsumerInvalid, "consumerId", format!("consumerId: {why}"));
    let consumer = id.parse().map_err(bad)?;
    service.require_consumer(Some(&consumer))?;
    Ok(consumer)
}

/// Parses a cursor into a consumer and a dataset. Neither name can contain a slash.
fn read_cursor(cursor: &str) -> Result<(ConsumerId, &str), Problem> {
    let position = cursor.split_once('/').filter(|(_, dataset)| is_dataset_name(dataset));
    let (consumer, dataset) = position.ok_or_else(pages::bad_cursor)?;
    Ok((consumer.parse().map_err(|_| pages::bad_cursor())?, dataset))
}

fn body(listed: ListedConsumer, capture: Option<&'static str>) -> ConsumerBody {
    let ListedConsumer { lag, as_of, last_export, unacknowledged, log_use, history, behind, state } = listed;
    ConsumerBody {
        consumer_id: lag.consumer.to_string(),
        dataset: lag.dataset,
        capture,
        last_exported_at: lag.last_exported_at.map(rfc3339),
        as_of: rfc3339(as_of),
        state: state.map(LaneState::as_str),
        behind_seconds: behind.map(|age| age.as_secs()),
        failures: history.failures,
        failing_since: history.failing_since.map(rfc3339),
        continuity: lag.continuity,
        last_job: last_export.map(JobJson::from),
        unacknowledged: unacknowledged.map(|of| of.exports),
        unacknowledged_since: unacknowledged.and_then(|of| of.since).map(rfc3339),
        log_bytes: log_use.as_ref().map(|of| of.bytes),
        log_bytes_max: log_use.as_ref().map(|of| of.max_bytes),
    }
}
