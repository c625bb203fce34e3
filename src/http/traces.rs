//! The span of a call: its caller's place in a trace, and what the call is below that.

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;

use crate::http::access::is_open;
use crate::telemetry::spans::{Kind, Span};
use crate::trace::TraceParent;

/// The header of W3C's Trace Context.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("traceparent");

/// The place in a trace that a request names. One that is not as the standard has it counts for nothing, and neither do
/// two.
pub(crate) fn place_of(headers: &HeaderMap) -> Option<TraceParent> {
    let mut named = headers.get_all(HEADER).iter();
    let place = named.next()?.to_str().ok()?.parse().ok();
    place.filter(|_| named.next().is_none())
}

/// What a method that no route has is called in a span's name: a caller may send any word.
const ANY: &str = "HTTP";

fn named(method: &Method) -> &'static str {
    const KNOWN: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"];
    KNOWN.into_iter().find(|known| method == known).unwrap_or(ANY)
}

/// Records a call, if calls are recorded, and names the call in its request, in the place of the caller. Whoever reads
/// the request gets the innermost place that is known. Not of what is asked for every few seconds, such as probes and
/// metrics, nor of the page.
pub(crate) async fn in_a_span(path: Option<MatchedPath>, mut request: Request, next: Next) -> Response {
    let route = path.as_ref().map(MatchedPath::as_str).filter(|route| !is_open(route) && *route != "/metrics");
    let Some(route) = route else { return next.run(request).await };
    let method = named(request.method());
    let span = Span::start(&format!("{method} {route}"), Kind::Server, place_of(request.headers()).as_ref());
    let Some(place) = span.place() else { return next.run(request).await };
    let name = HeaderValue::try_from(place.to_string()).expect("digits and dashes");
    request.headers_mut().insert(HEADER, name);
    span.set("http.request.method", if method == ANY { "_OTHER" } else { method });
    span.set("http.route", route.to_owned());
    let answer = span.around(next.run(request)).await;
    let status = answer.status();
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.fail(status.to_string());
    }
    answer
}
