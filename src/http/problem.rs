//! Errors as clients see them: `application/problem+json` (RFC 9457). The only status codes of errors are here.
//!
//! A `detail` never has SQL, a path or a cause from inside; those go to the log, under the answer's request id.

use std::any::Any;
use std::error::Error as _;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::job::ConsumerId;
use crate::key::Scope;
use crate::service;

/// An error answer.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// A header that the answer has beside it.
    #[serde(skip)]
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

const REALM: &str = "Bearer realm=\"cdc-export\"";

impl Problem {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Problem {
        Problem {
            kind: format!("urn:cdc-export:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            code,
            field: None,
            header: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    fn with(mut self, name: HeaderName, value: String) -> Problem {
        let value = value.parse().expect("our words and numbers are valid header values");
        self.header = Some(Box::new((name, value)));
        self
    }

    fn about(mut self, field: impl Into<String>) -> Problem {
        self.field = Some(field.into());
        self
    }

    /// A header or member with a bad value, or none where one must be.
    pub(crate) fn bad_input(code: &'static str, field: &str, detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, code, detail).about(field)
    }

    pub(crate) fn bad_body(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "invalid_body", detail)
    }

    pub(crate) fn host_refused() -> Problem {
        let detail =
            "open without a key to callers on this machine only: the Host must be localhost or a loopback address";
        Problem::new(StatusCode::FORBIDDEN, "host_not_local", detail).about("Host")
    }

    pub(crate) fn origin_refused() -> Problem {
        let detail = "a web page of another origin may not call this service";
        Problem::new(StatusCode::FORBIDDEN, "origin_not_allowed", detail).about("Origin")
    }

    pub(crate) fn key_required() -> Problem {
        let detail = "a key is needed, as Authorization: Bearer cdcx_…";
        Problem::new(StatusCode::UNAUTHORIZED, "key_required", detail)
            .about("Authorization")
            .with(header::WWW_AUTHENTICATE, REALM.to_owned())
    }

    /// Says the same of all keys that aren't good: who guesses shall not learn whether he comes nearer.
    pub(crate) fn key_invalid() -> Problem {
        Problem::new(StatusCode::UNAUTHORIZED, "key_invalid", service::Error::NoKey.to_string())
            .about("Authorization")
            .with(header::WWW_AUTHENTICATE, format!("{REALM}, error=\"invalid_token\""))
    }

    pub(crate) fn scope_missing(scope: Scope) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, "scope_missing", format!("this key is not for that: it lacks {scope}"))
            .about("Authorization")
            .with(header::WWW_AUTHENTICATE, format!("{REALM}, error=\"insufficient_scope\", scope=\"{scope}\""))
    }

    /// The consumer is the caller's own word, so it tells him nothing.
    pub(crate) fn consumer_not_allowed(consumer: Option<&ConsumerId>) -> Problem {
        let detail = match consumer {
            Some(consumer) => format!("this key is not for the consumer {consumer}"),
            None => "this key is for certain consumers: name one by X-Consumer-ID".to_owned(),
        };
        Problem::new(StatusCode::FORBIDDEN, "consumer_not_allowed", detail).about("X-Consumer-ID")
    }

    pub(crate) fn rate_limited(wait: Duration) -> Problem {
        let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
        let detail = format!("too many requests: the next one in {seconds} s");
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
            .with(header::RETRY_AFTER, seconds.to_string())
    }

    pub(crate) fn not_found(detail: &str) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    pub(crate) fn method_not_allowed() -> Problem {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path has no such method")
    }

    pub(crate) fn body_too_slow() -> Problem {
        Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body did not arrive in time")
    }

    pub(crate) fn body_too_large() -> Problem {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "a body has 1 MB at most")
    }

    pub(crate) fn uri_too_long() -> Problem {
        Problem::new(StatusCode::URI_TOO_LONG, "uri_too_long", "a path with its query has 8 KB at most")
    }

    pub(crate) fn headers_too_large() -> Problem {
        let detail = "a request has 100 headers and 32 KB of them at most";
        Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", detail)
    }

    pub(crate) fn not_json() -> Problem {
        let detail = "a body must be application/json, and say so";
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail).about("Content-Type")
    }

    /// A range past the end of a file of `size` bytes.
    pub(crate) fn range_not_satisfiable(size: u64) -> Response {
        let detail = format!("the file has {size} bytes");
        let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable", detail).about("Range");
        ([(header::CONTENT_RANGE, format!("bytes */{size}"))], problem).into_response()
    }

    fn unavailable(code: &'static str, detail: String) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
    }

    pub(crate) fn internal() -> Problem {
        let detail = "the service failed; its log has the cause under this answer's X-Request-Id";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(mut self) -> Response {
        let own = self.header.take();
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        if let Some((name, value)) = own.map(|header| *header) {
            headers.insert(name, value);
        }
        response
    }
}

impl From<service::Error> for Problem {
    fn from(error: service::Error) -> Problem {
        use service::Error;
        let detail = error.to_string();
        match &error {
            Error::DatabaseUnavailable(cause) => {
                tracing::warn!(event = "database_unavailable", error = cause.source());
                Problem::unavailable("database_unavailable", detail)
            }
            Error::Database(cause) => {
                tracing::error!(event = "request_failed", error = %cause, cause = cause.source());
                Problem::internal()
            }
            Error::Table(cause) => {
                tracing::error!(event = "table_unreadable", error = cause.as_ref().map(tracing::field::display));
                Problem::unavailable("table_unreadable", detail)
            }
            Error::OutputFull(_) => Problem::unavailable("storage_full", detail),
            Error::OutputReadOnly(_) => Problem::unavailable("storage_readonly", detail),
            Error::OutputMissing(_) => Problem::unavailable("output_missing", detail),
            Error::Output(cause) => {
                tracing::error!(event = "output_failed", error = %cause, cause = cause.source());
                Problem::unavailable("output_failed", detail)
            }
            Error::NoKey => Problem::key_invalid(),
            Error::NoJob | Error::NoUser => Problem::not_found(&detail),
            Error::NoDataset(_) => Problem::new(StatusCode::NOT_FOUND, "no_dataset", detail).about("dataset"),
            Error::NoTimes(_) => Problem::new(StatusCode::CONFLICT, "no_updated_at", detail).about("lastExportedAt"),
            Error::BadSelection(bad) => Problem::bad_input("member_invalid", &bad.field, detail),
            Error::Mismatch(faults) => {
                tracing::warn!(event = "dataset_mismatch", faults = faults.0.len(), error = detail);
                Problem::unavailable("dataset_mismatch", detail)
            }
            Error::NoWatermark => Problem::new(StatusCode::NOT_FOUND, "no_watermark", detail),
            Error::NoFile(_) => Problem::new(StatusCode::CONFLICT, "not_completed", detail),
            Error::FileGone => Problem::new(StatusCode::GONE, "file_gone", detail),
            Error::FileOnOtherHost => Problem::unavailable("file_on_other_host", detail),
            Error::Committing => Problem::new(StatusCode::CONFLICT, "committing", detail),
            Error::Open(_) => Problem::new(StatusCode::CONFLICT, "still_open", detail),
            Error::Ended(_) => Problem::new(StatusCode::CONFLICT, "already_ended", detail),
            Error::NotToRetry(_) => Problem::new(StatusCode::CONFLICT, "not_failed", detail),
            Error::KeyTaken(_) => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", detail)
                .about("Idempotency-Key"),
            Error::TooManyFollowers => Problem::unavailable("too_many_followers", detail),
            Error::TooManyOpen(_) => Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_open_jobs", detail),
        }
    }
}

/// A panic in a handler: the client learns that it failed, the log has the panic.
pub(crate) fn for_panic(_panic: Box<dyn Any + Send>) -> Response {
    Problem::internal().into_response()
}

/// Errors that the framework made, as text, become problems like all others.
pub(crate) async fn for_foreign_errors(response: Response) -> Response {
    let status = response.status();
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let ours = content_type.starts_with("application/json") || content_type.starts_with("application/problem+json");
    if ours || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let problem = Problem::new(status, "bad_request", "the request can't be read");
    let mut answer = problem.into_response();
    answer.headers_mut().extend(response.headers().get(header::ALLOW).map(|allow| (header::ALLOW, allow.clone())));
    answer
}
