//! Spans of calls, and their position in the caller's trace.

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;

use crate::http::access::is_open;
use crate::telemetry::spans::{Kind, Span};
use crate::trace::TraceParent;

/// The header of W3C's Trace Context.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("traceparent");

/// Returns the position in a trace given by a request. Returns `None` if the header is missing, invalid or given twice.
pub(crate) fn place_of(headers: &HeaderMap) -> Option<TraceParent> {
    let mut named = headers.get_all(HEADER).iter();
    let place = named.next()?.to_str().ok()?.parse().ok();
    place.filter(|_| named.next().is_none())
}

/// Name of an unknown method in a span's name. The client's text is not used, because it may be arbitrary.
const UNKNOWN_METHOD: &str = "HTTP";

fn method_name(method: &Method) -> &'static str {
    const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"];
    METHODS.into_iter().find(|known| method == known).unwrap_or(UNKNOWN_METHOD)
}

/// Records a span for a call if tracing is enabled.
///
/// Replaces `traceparent` in the request with the span's position, so handlers get the innermost known position.
/// Frequent calls, such as health checks, metrics and the page, are not recorded.
pub(crate) async fn record_span(path: Option<MatchedPath>, mut request: Request, next: Next) -> Response {
    let route = path.as_ref().map(MatchedPath::as_str).filter(|route| !is_open(route) && *route != "/metrics");
    let Some(route) = route else { return next.run(request).await };
    let method = method_name(request.method());
    let span = Span::start(&format!("{method} {route}"), Kind::Server, place_of(request.headers()).as_ref());
    let Some(place) = span.place() else { return next.run(request).await };
    let name = HeaderValue::try_from(place.to_string()).expect("a traceparent has only digits and dashes");
    request.headers_mut().insert(HEADER, name);
    span.set("http.request.method", if method == UNKNOWN_METHOD { "_OTHER" } else { method });
    span.set("http.route", route.to_owned());
    let answer = span.around(next.run(request)).await;
    let status = answer.status();
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.fail(status.to_string());
    }
    answer
}
