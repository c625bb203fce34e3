//! `/health` and `/metrics`, for monitoring and load balancers.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use chrono::Utc;
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use crate::http::access::{Access, has_own_key};
use crate::http::datasets::problems;
use crate::job::json::rfc3339;
use crate::service::{self, CachedRead, Service};
use crate::telemetry::metrics::CONTENT_TYPE;
use cdc_dataset::Description;
use pg_session::failure::chain;

/// The health of this process.
#[derive(Serialize, ToSchema)]
#[schema(as = Health, example = json!({
    "status": "ok", "timestamp": "2026-11-20T09:13:10.962731Z", "checks": { "postgres": "ok" }
}))]
pub(crate) struct HealthBody {
    /// `ok` or `unavailable`
    #[schema(pattern = "^(ok|unavailable)$")]
    status: &'static str,
    /// The time of the response
    #[schema(format = DateTime)]
    timestamp: String,
    /// The result of each check: `ok`, or the problem
    checks: BTreeMap<&'static str, String>,
    /// The time when the tables of the datasets were looked at; missing if that was more than a minute ago
    #[serde(rename = "asOf", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = DateTime)]
    as_of: Option<String>,
}

/// The response of a health check.
#[derive(IntoResponses)]
pub(crate) enum HealthAnswer {
    /// All checks passed.
    #[response(status = 200)]
    Healthy(HealthBody),
    /// A check failed.
    #[response(status = 503, headers(("Retry-After" = u32, description = "Seconds")))]
    Unhealthy(HealthBody),
}

impl IntoResponse for HealthAnswer {
    fn into_response(self) -> Response {
        match self {
            HealthAnswer::Healthy(body) => Json(body).into_response(),
            HealthAnswer::Unhealthy(body) => {
                (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "2")], Json(body)).into_response()
            }
        }
    }
}

/// Check that Postgres can be used
#[utoipa::path(get, path = "/health", operation_id = "getHealth", tag = "service", responses(HealthAnswer))]
pub(crate) async fn health(service: Service) -> HealthAnswer {
    answer([("postgres", word(service.ping().await))])
}

/// Check that this process responds
#[utoipa::path(
    get, path = "/health/live", operation_id = "getLiveness", tag = "service",
    responses((status = 200, description = "The process responds.", body = HealthBody)),
)]
pub(crate) async fn live() -> HealthAnswer {
    answer([])
}

/// Check that an export could start now
///
/// Checks Postgres, the output folder or bucket, and the free space on a folder's disk. `datasets` lists the datasets
/// that are not ready, with the reasons, as `/datasets` does; if calls need keys, only their number. They do not change
/// the status, because exports of other datasets can start. Nor does `publishing`, which is listed if the files of
/// committed exports have no names after a minute. `workers` is listed if a process could claim no job for a
/// minute, which alone has the status 503 then, or if no process looks for jobs.
#[utoipa::path(get, path = "/health/ready", operation_id = "getReadiness", tag = "service", responses(HealthAnswer))]
pub(crate) async fn ready(Extension(access): Extension<Access>, headers: HeaderMap, service: Service) -> HealthAnswer {
    let health = service.health().await;
    let are_named = access != Access::Keys && !has_own_key(&headers);
    let (datasets, as_of) = match health.tables {
        Some(CachedRead { value, as_of }) => (ready_or_why(&value.datasets, are_named), Some(rfc3339(as_of))),
        None => ("no look at their tables has ended in the last minute".to_owned(), None),
    };
    // The causes have the folder, the missing bytes of a full disk, and whether the folder gives no answer.
    let output = match health.output {
        Err(error) if are_named && matches!(*error, service::Error::OutputFull(_) | service::Error::Output(_)) => {
            Err(chain(&*error))
        }
        output => word(output),
    };
    let checks = [("postgres", word(health.postgres)), ("output", output)];
    let workers = health.claims_fail.map(|time| {
        let seconds = time.as_secs();
        ("workers", Err(format!("no job could be claimed for {seconds} seconds: `claim_failed` in the log says why")))
    });
    // The check is listed only while the process drains. An orchestrator must send requests to another process then.
    let stops = health.is_draining.then(|| ("service", Err("it is stopping".to_owned())));
    let mut answer = answer(checks.into_iter().chain(stops).chain(workers));
    let (HealthAnswer::Healthy(body) | HealthAnswer::Unhealthy(body)) = &mut answer;
    body.checks.insert("datasets", datasets);
    let others = if health.others.failing > 0 {
        Some("another process can claim no job: `claim_failed` in its log says why")
    } else {
        health.others.are_none.then_some("no process looks for jobs: none runs, or each hangs")
    };
    if let Some(others) = others {
        body.checks.entry("workers").or_insert_with(|| others.to_owned());
    }
    if health.others.have_unpublished {
        let why = "files of committed exports have no names after a minute: the jobs of GET \
                   /exports?status=processing name the remedy";
        body.checks.insert("publishing", why.to_owned());
    }
    if let Some(why) = health.stale_catalog {
        let why = if are_named { &*why } else { "the log says why" };
        body.checks.insert("catalog", format!("stale: the datasets file has changed and is not in force: {why}"));
    }
    body.as_of = as_of;
    answer
}

/// Get the metrics, for Prometheus
///
/// The status is 200 even if the database is unavailable; a metric then reports that.
#[utoipa::path(
    get, path = "/metrics", operation_id = "getMetrics", tag = "service",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain")),
)]
pub(crate) async fn metrics(service: Service) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], service.metrics().await)
}

/// The number of datasets above which a health check only counts them.
const MAX_NAMED: usize = 10;

/// Returns `ok`, or the datasets that are not ready with the reasons, as `/datasets` lists them. Without `are_named`,
/// returns only their number, because the caller may be anybody.
fn ready_or_why(datasets: &[Description], are_named: bool) -> String {
    let why = |dataset: &Description| {
        // Health checks need no key, so their response does not contain names of roles and missing privileges.
        let problems = match (&dataset.unreadable, &dataset.log_obstacle) {
            (Some(_), _) => vec!["the database role may not read its table".to_owned()],
            (None, Some(_)) => {
                vec![
                    "writes to its table fail or are not logged, because of the rights or the state of the change log"
                        .to_owned(),
                ]
            }
            (None, None) => problems(dataset),
        };
        (!problems.is_empty()).then(|| format!("{}: {}", dataset.dataset.name, problems.join("; ")))
    };
    let why: Vec<_> = datasets.iter().filter_map(why).collect();
    match why.len() {
        0 => "ok".to_owned(),
        1..=MAX_NAMED if are_named => why.join("; "),
        count => format!("{count} of {} are not ready: GET /datasets says why", datasets.len()),
    }
}

fn word<E: std::fmt::Display>(check: Result<(), E>) -> Result<(), String> {
    check.map_err(|error| error.to_string())
}

fn answer(checks: impl IntoIterator<Item = (&'static str, Result<(), String>)>) -> HealthAnswer {
    let checks: Vec<_> = checks.into_iter().collect();
    let healthy = checks.iter().all(|(_, check)| check.is_ok());
    let checks = checks.into_iter().map(|(name, check)| (name, check.err().unwrap_or_else(|| "ok".to_owned())));
    let body = HealthBody {
        status: if healthy { "ok" } else { "unavailable" },
        timestamp: rfc3339(Utc::now()),
        checks: checks.collect(),
        as_of: None,
    };
    if healthy { HealthAnswer::Healthy(body) } else { HealthAnswer::Unhealthy(body) }
}
