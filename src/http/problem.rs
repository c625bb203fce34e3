//! Errors as clients receive them: `application/problem+json` (RFC 9457). `code` defines the codes and their statuses.
//! A match in this file maps each error of `service` to a code.
//!
//! A `detail` never contains SQL, a path or an inner cause. Those are logged under the request id of the response.

use std::any::Any;
use std::error::Error as _;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::code::Code;
use crate::job::json::JobJson;
use crate::key::Scope;
use crate::service;

/// An error response (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// `urn:cdc-export:problem:` and the code
    #[serde(rename = "type")]
    kind: String,
    /// The status as text
    title: &'static str,
    /// The status
    status: u16,
    /// A description of the error for people
    detail: String,
    /// The kind of the error for programs
    code: Code,
    /// The header, parameter or member that caused the problem, if there is one
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = String)]
    field: Option<Box<str>>,
    /// With `out_of_step`: the exports published since that in `after`, oldest first, at most 100, then the open ones
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Vec<JobJson>)]
    jobs: Option<Box<[JobJson]>>,
    /// An additional header of the response.
    #[serde(skip)]
    header: Option<Box<(HeaderName, HeaderValue)>>,
    /// The service's error with its causes, for a caller in this process.
    #[serde(skip)]
    cause: Option<Arc<service::Error>>,
}

const REALM: &str = "Bearer realm=\"cdc-export\"";

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Problem {
        Problem::with_status(code.status(), code, detail)
    }

    fn with_status(status: StatusCode, code: Code, detail: impl Into<String>) -> Problem {
        Problem {
            kind: format!("urn:cdc-export:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            code,
            field: None,
            jobs: None,
            header: None,
            cause: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> &'static str {
        self.code.as_str()
    }

    fn with_header(mut self, name: HeaderName, value: String) -> Problem {
        let value = value.parse().expect("our words and numbers are valid header values");
        self.header = Some(Box::new((name, value)));
        self
    }

    fn with_field(mut self, field: impl Into<Box<str>>) -> Problem {
        self.field = Some(field.into());
        self
    }

    /// Returns the problem of a header, parameter or member with an invalid or missing value.
    pub(crate) fn bad_input(code: Code, field: &str, detail: impl Into<String>) -> Problem {
        Problem::new(code, detail).with_field(field)
    }

    pub(crate) fn bad_parameter(name: &str, why: impl Display) -> Problem {
        Problem::bad_input(Code::ParameterInvalid, name, format!("{name}: {why}"))
    }

    pub(crate) fn bad_body(detail: impl Into<String>) -> Problem {
        Problem::new(Code::InvalidBody, detail)
    }

    /// Returns the problem of a request forwarded by a proxy; `mark` is the header that shows this.
    pub(crate) fn proxy_refused(mark: &str) -> Problem {
        let mark = conventional(mark);
        let detail = format!(
            "without keys, only callers on this machine are allowed, and {mark} shows that a proxy forwarded the request: \
             behind a proxy, set AUTH=keys, or AUTH=none if the proxy authenticates callers"
        );
        Problem::new(Code::ProxyNotAllowed, detail).with_field(mark)
    }

    pub(crate) fn key_required() -> Problem {
        let detail = "a key is needed, as Authorization: Bearer cdcx_…";
        Problem::new(Code::KeyRequired, detail)
            .with_field("Authorization")
            .with_header(header::WWW_AUTHENTICATE, REALM.to_owned())
    }

    /// Returns the problem of every invalid key. The reason is not included, because it could help a client that
    /// guesses keys.
    pub(crate) fn key_invalid() -> Problem {
        Problem::new(Code::KeyInvalid, service::Error::NoKey.to_string())
            .with_field("Authorization")
            .with_header(header::WWW_AUTHENTICATE, format!("{REALM}, error=\"invalid_token\""))
    }

    pub(crate) fn scope_missing(scope: Scope) -> Problem {
        Problem::new(Code::ScopeMissing, format!("this key lacks the scope {scope}"))
            .with_field("Authorization")
            .with_header(header::WWW_AUTHENTICATE, format!("{REALM}, error=\"insufficient_scope\", scope=\"{scope}\""))
    }

    pub(crate) fn rate_limited(wait: Duration) -> Problem {
        let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
        let detail = format!("too many requests: retry in {seconds} s");
        Problem::new(Code::RateLimited, detail).with_header(header::RETRY_AFTER, seconds.to_string())
    }

    pub(crate) fn not_found(detail: &str) -> Problem {
        Problem::new(Code::NotFound, detail)
    }

    pub(crate) fn method_not_allowed(method: &Method, uri: &Uri) -> Problem {
        let last = uri.path().strip_prefix("/exports/");
        let is_type_of_export = last.is_some_and(|last| !last.contains('/') && last != "watermark");
        let detail = if method == Method::POST && is_type_of_export {
            "this path has no such method: exports are made at /exports/full, /exports/incremental and /exports/delta"
        } else {
            "this path has no such method"
        };
        Problem::new(Code::MethodNotAllowed, detail)
    }

    pub(crate) fn range_not_satisfiable(size: u64) -> Response {
        let detail = format!("the file has {size} bytes");
        let problem = Problem::new(Code::RangeNotSatisfiable, detail).with_field("Range");
        ([(header::CONTENT_RANGE, format!("bytes */{size}"))], problem).into_response()
    }

    pub(crate) fn internal() -> Problem {
        let detail = "the service failed; its log has the cause under this answer's X-Request-Id";
        Problem::new(Code::Internal, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(mut self) -> Response {
        let (own, cause, code) = (self.header.take(), self.cause.take(), self.code);
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
        if let Some(cause) = cause {
            response.extensions_mut().insert(cause);
        }
        response.extensions_mut().insert(code);
        response
    }
}

impl From<service::Error> for Problem {
    fn from(error: service::Error) -> Problem {
        Arc::new(error).into()
    }
}

impl From<Arc<service::Error>> for Problem {
    fn from(error: Arc<service::Error>) -> Problem {
        use service::Error;
        let detail = error.to_string();
        let problem = match &*error {
            Error::StandbyMissing(_) => {
                tracing::error!(event = "standby_missing", error = detail);
                Problem::new(Code::DatabaseUnavailable, detail)
            }
            Error::DatabaseDenied(_) => {
                tracing::error!(event = "right_missing", error = detail);
                Problem::new(Code::DatabaseUnavailable, detail)
            }
            Error::OutOfStep(_, exports) => {
                let jobs = exports.iter().cloned().map(JobJson::from).collect();
                Problem { jobs: Some(jobs), ..Problem::new(Code::OutOfStep, detail).with_field("after") }
            }
            Error::DatabaseUnavailable(cause) => {
                tracing::warn!(event = "database_unavailable", error = cause.source());
                Problem::new(Code::DatabaseUnavailable, detail)
            }
            Error::Database(cause) => {
                tracing::error!(event = "request_failed", error = %cause, cause = cause.source());
                Problem::internal()
            }
            Error::Table(cause) => {
                tracing::error!(event = "table_unreadable", error = cause.as_ref().map(tracing::field::display));
                Problem::new(Code::TableUnreadable, detail)
            }
            Error::OutputFull(_) => Problem::new(Code::StorageFull, detail),
            Error::OutputReadOnly(_) => Problem::new(Code::StorageReadonly, detail),
            Error::OutputMissing(_) => Problem::new(Code::OutputMissing, detail),
            Error::Output(cause) => {
                tracing::error!(event = "output_failed", error = %cause, cause = cause.source());
                Problem::new(Code::OutputFailed, detail)
            }
            Error::NoKey => Problem::key_invalid(),
            Error::NoJob | Error::NoUser | Error::NoDelivery | Error::NoConsumer(_) => Problem::not_found(&detail),
            Error::NoExport(_) => Problem::not_found(&detail).with_field("dataset"),
            Error::Tables(cause) => return Problem::from(Arc::clone(cause)),
            Error::NoDataset(_) => Problem::new(Code::NoDataset, detail).with_field("dataset"),
            Error::ConsumerNotAllowed(_) => Problem::new(Code::ConsumerNotAllowed, detail).with_field("X-Consumer-ID"),
            Error::DatasetNotAllowed(_) => Problem::new(Code::DatasetNotAllowed, detail).with_field("dataset"),
            Error::NoTable { .. } => Problem::new(Code::TableMissing, detail).with_field("dataset"),
            Error::NotReadable(cause) => {
                tracing::warn!(event = "not_readable", error = detail, cause = cause.source());
                Problem::new(Code::PermissionDenied, detail).with_field("dataset")
            }
            Error::NotTracked(_) => Problem::new(Code::NotTracked, detail).with_field("dataset"),
            Error::FullOnly(_) => Problem::new(Code::FullOnly, detail).with_field("dataset"),
            Error::ColumnMasked(bad) => Problem::bad_input(Code::ColumnMasked, &bad.field, detail),
            Error::BadSelection(bad) => Problem::bad_input(Code::MemberInvalid, &bad.field, detail),
            Error::Mismatch(faults) => {
                tracing::warn!(event = "dataset_mismatch", faults = faults.0.len(), error = detail);
                Problem::new(Code::DatasetMismatch, detail)
            }
            Error::NoWatermark => Problem::new(Code::NoWatermark, detail),
            Error::NoFile(_) | Error::NotPublished(_) => Problem::new(Code::NotCompleted, detail),
            Error::Skipped => Problem::new(Code::NoFile, detail),
            Error::AdHoc => Problem::new(Code::AdHoc, detail),
            Error::NoUrl => Problem::new(Code::NoUrl, detail),
            Error::SeveralDatasets(_) => Problem::new(Code::SeveralDatasets, detail).with_field("dataset"),
            Error::SeveralFiles(_) => Problem::new(Code::SeveralFiles, detail),
            Error::NoPart(_) => Problem::new(Code::NoPart, detail),
            Error::NoEndpoint(_) => Problem::new(Code::NoEndpoint, detail),
            Error::NoManifest => Problem::new(Code::NoManifest, detail),
            Error::FileGone => Problem::new(Code::FileGone, detail),
            Error::FileOnOtherHost => Problem::new(Code::FileOnOtherHost, detail),
            Error::FileOfOtherDatabase => Problem::new(Code::FileOfOtherDatabase, detail),
            Error::TooManyDatasets(_) => Problem::new(Code::MemberInvalid, detail).with_field("datasets"),
            Error::AfterUnknown(_) => Problem::new(Code::MemberInvalid, detail).with_field("after"),
            Error::NothingReady(_) => Problem::new(Code::NothingReady, detail).with_field("datasets"),
            Error::Committing => Problem::new(Code::Committing, detail),
            Error::Open(_) | Error::ConsumerOpen(_) => Problem::new(Code::StillOpen, detail),
            Error::Ended(_) => Problem::new(Code::AlreadyEnded, detail),
            Error::Restored => Problem::new(Code::DatabaseRestored, detail).with_field("after"),
            Error::NotToRetry(_) => Problem::new(Code::NotFailed, detail),
            Error::KeyTaken(_) => Problem::new(Code::IdempotencyKeyReused, detail).with_field("Idempotency-Key"),
            Error::TooManyFollowers => Problem::new(Code::TooManyFollowers, detail),
            Error::TooManyOpen(_) | Error::QueueFull(_) | Error::KeyFull(_) => {
                Problem::new(Code::TooManyOpenJobs, detail)
            }
        };
        Problem { cause: Some(error), ..problem }
    }
}

/// Returns a header's name in its usual spelling, such as `X-Real-IP`.
fn conventional(name: &str) -> String {
    let part = |part: &str| match (part, part.split_at_checked(1)) {
        ("ip", _) => "IP".to_owned(),
        (_, Some((first, rest))) => first.to_ascii_uppercase() + rest,
        (part, None) => part.to_owned(),
    };
    name.split('-').map(part).collect::<Vec<_>>().join("-")
}

/// Returns the response after a panic in a handler. The panic is logged under the request id of the response.
pub(crate) fn panic_response(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(event = "request_panicked", error = text);
    Problem::internal().into_response()
}

/// Replaces the text responses of the framework's errors with problems.
pub(crate) async fn replace_foreign_errors(response: Response) -> Response {
    let status = response.status();
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let ours = content_type.starts_with("application/json") || content_type.starts_with("application/problem+json");
    if ours || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let problem = Problem::with_status(status, Code::BadRequest, "the request can't be read");
    let mut answer = problem.into_response();
    answer.headers_mut().extend(response.headers().get(header::ALLOW).map(|allow| (header::ALLOW, allow.clone())));
    answer
}
