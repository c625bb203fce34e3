//! `/audit`: the audit log.

use axum::Json;
use axum::extract::Query;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::audit::{Action, AuditEntry, AuditFilter};
use crate::dataset::name::is_name;
use crate::http::pages::{self, Page};
use crate::http::problem::Problem;
use crate::http::query;
use crate::http::schemas::DatasetName;
use crate::job::ConsumerId;
use crate::job::json::rfc3339;
use crate::service::Service;

/// The query of `/audit`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditQuery {
    /// Requests with the key of this prefix, or of `schedule:NAME` or `cli:USER`
    #[param(example = "5f0c7a91be24")]
    key: Option<String>,
    /// Requests for this consumer
    #[param(value_type = Option<ConsumerId>)]
    consumer: Option<String>,
    /// Requests for this dataset
    #[param(value_type = Option<DatasetName>)]
    dataset: Option<String>,
    /// Requests with this action
    #[param(value_type = Option<Action>)]
    action: Option<String>,
    /// Requests at this time or later
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<String>,
    /// Requests before this time
    #[param(value_type = Option<String>, format = DateTime)]
    to: Option<String>,
    /// Maximum number of items; the default is 50
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Option<String>,
    /// The `nextCursor` of the previous page
    cursor: Option<String>,
}

/// A request in the audit log.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AuditEntry, example = json!({
    "at": "2026-11-20T09:13:15.958121Z", "requestId": "7a3f8c1e-9b7d-4f59-8f64-0a8e2b1c5d33", "key": "5f0c7a91be24",
    "remote": "10.0.0.7", "action": "download", "consumerId": "search", "dataset": "users",
    "jobId": "01a1f83b-4327-76af-8511-139e6c6a362d", "outcome": "done", "count": 1
}))]
pub(crate) struct AuditBody {
    /// The time of the request
    #[schema(format = DateTime)]
    at: String,
    /// The id of the request
    #[schema(required)]
    request_id: Option<String>,
    /// The prefix of the key, or `schedule:NAME` or `cli:USER`; null if the call needed no key
    #[schema(required)]
    key: Option<String>,
    /// The address of the peer, which is the proxy's behind a proxy; null if the request did not come over HTTP
    #[schema(required)]
    remote: Option<String>,
    /// The effect of the request, or the intended one
    action: Action,
    /// The consumer
    #[schema(required)]
    consumer_id: Option<String>,
    /// The dataset
    #[schema(required)]
    dataset: Option<String>,
    /// The export
    #[schema(required)]
    job_id: Option<Uuid>,
    /// `done`, or the code of the refusal
    outcome: String,
    /// The number of equal downloads or refusals of the key within a minute of the first one
    count: i64,
}

impl From<AuditEntry> for AuditBody {
    fn from(entry: AuditEntry) -> AuditBody {
        AuditBody {
            at: rfc3339(entry.at),
            request_id: entry.request_id,
            key: entry.key,
            remote: entry.remote,
            action: entry.action,
            consumer_id: entry.consumer,
            dataset: entry.dataset,
            job_id: entry.job.map(|job| job.as_uuid()),
            outcome: entry.outcome,
            count: entry.count,
        }
    }
}

/// List the audit log, newest first
///
/// The log has each request that changed something, each download that began, and each request with a valid key that
/// was refused with 403, 409 or 422.
#[utoipa::path(
    get, path = "/audit", operation_id = "listAudit", tag = "service",
    params(AuditQuery), responses((status = 200, description = "A page.", body = Page<AuditBody>)),
)]
pub(crate) async fn list(service: Service, Query(query): Query<AuditQuery>) -> Result<Json<Page<AuditBody>>, Problem> {
    let limit = pages::limit(query.limit.as_deref())?;
    if query.key.as_ref().is_some_and(|key| key.contains(char::is_control)) {
        return Err(Problem::bad_parameter(
            "key",
            "the prefix of a key, or schedule: or cli: with a name, is expected",
        ));
    }
    if query.dataset.as_ref().is_some_and(|name| !is_name(name)) {
        return Err(Problem::bad_parameter("dataset", "the name of a dataset is expected"));
    }
    let filter = AuditFilter {
        key: query.key,
        consumer: query::word("consumer", query.consumer)?,
        dataset: query.dataset,
        action: query::word("action", query.action)?,
        from: query.from.map(|text| time("from", &text)).transpose()?,
        to: query.to.map(|text| time("to", &text)).transpose()?,
        before: query.cursor.map(|cursor| cursor.parse().map_err(|_| pages::bad_cursor())).transpose()?,
    };
    let entries = service.audit_entries(&filter, limit + 1).await?;
    Ok(Json(Page::new(entries, limit, |entry| entry.id.to_string(), AuditBody::from)))
}

fn time(name: &str, text: &str) -> Result<DateTime<Utc>, Problem> {
    let time = DateTime::parse_from_rfc3339(text).map(DateTime::<Utc>::from);
    time.map_err(|_| Problem::bad_parameter(name, "an RFC 3339 time is expected"))
}
