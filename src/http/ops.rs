//! `/health` and `/metrics`: for whoever watches or routes to this process.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use serde::Serialize;

use crate::http::exports::rfc3339;
use crate::service::Service;
use crate::telemetry::metrics::CONTENT_TYPE;

#[derive(Serialize)]
struct HealthBody {
    status: &'static str,
    timestamp: String,
    checks: BTreeMap<&'static str, String>,
}

/// `GET /health`: that Postgres can be reached.
pub(crate) async fn health(State(service): State<Service>) -> Response {
    answer([("postgres", word(service.ping().await))])
}

/// `GET /health/live`: that this process answers.
pub(crate) async fn live() -> Response {
    answer([])
}

/// `GET /health/ready`: that a job could start now.
pub(crate) async fn ready(State(service): State<Service>) -> Response {
    let health = service.health().await;
    answer([("postgres", word(health.postgres)), ("output", word(health.output))])
}

/// `GET /metrics`: for Prometheus. 200 also without a database, which is then one of the things to be told.
pub(crate) async fn metrics(State(service): State<Service>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], service.metrics().await)
}

fn word<E: std::fmt::Display>(check: Result<(), E>) -> Result<(), String> {
    check.map_err(|error| error.to_string())
}

fn answer<const N: usize>(checks: [(&'static str, Result<(), String>); N]) -> Response {
    let healthy = checks.iter().all(|(_, check)| check.is_ok());
    let checks = checks.into_iter().map(|(name, check)| (name, check.err().unwrap_or_else(|| "ok".to_owned())));
    let body = HealthBody {
        status: if healthy { "ok" } else { "unavailable" },
        timestamp: rfc3339(Utc::now()),
        checks: checks.collect(),
    };
    if healthy {
        Json(body).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "2")], Json(body)).into_response()
    }
}
