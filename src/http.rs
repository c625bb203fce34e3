//! The HTTP API: routes, layers and the server loop.
//!
//! Depends on `service` and the domain modules. Only `problem` and `code` contain the status codes of errors. This
//! module contains no SQL, accesses no files and reads no environment variables.

mod access;
mod activity;
mod body;
mod code;
mod connections;
mod consumers;
mod cors;
mod datasets;
mod deliveries;
mod docs;
mod exports;
pub mod in_process;
mod input;
mod local;
mod openapi;
mod ops;
mod page;
mod pages;
mod problem;
mod query;
mod rate;
mod schedules;
mod schemas;
mod stream;
mod symptoms;
mod traces;
mod users;
mod watermarks;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method, Uri, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::set_header::SetResponseHeaderLayer;
use tracing::Instrument;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use access::Access;
pub use connections::ConnectionLimits;
pub use cors::Origins;
pub use local::LocalHosts;
pub use rate::Rate;

use crate::http::access::{AccessControl, Peer};
use crate::http::code::Code;
use crate::http::connections::{Connections, RequestShares};
use crate::http::openapi::RouterDocument;
use crate::http::problem::Problem;
use crate::http::query::Parameters;
use crate::http::stream::{ClientStream, RequestBody};
use crate::key;
use crate::service::Service;
use crate::telemetry::log_throttle::LogThrottle;

/// Time limit for receiving the head of a request. The body has a time limit of the same length.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit after a shutdown request for finishing open responses, including downloads.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum number of connections in the accept queue. The system may set a lower maximum (`net.core.somaxconn`). A
/// client whose connection does not fit retries after one second.
const BACKLOG: u32 = 4_096;
const MAX_URI_BYTES: usize = 8 * 1024;
const MAX_HEADERS: usize = 100;
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// Maximum number of headers that hyper reads. A request with more than [`MAX_HEADERS`] headers, up to this number,
/// gets a problem as its response. Above this number, hyper responds without a body.
const MAX_HEADERS_READ: usize = 1000;
/// Buffer size of a connection; hyper's default is 400 KiB. A head that slightly exceeds the limits for URI and headers
/// still fits. So that request gets a problem as its response.
const CONNECTION_BUFFER_BYTES: usize = 64 * 1024;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
/// The content security policy of responses that are no pages.
const NO_CONTENT: &str = "default-src 'none'; frame-ancestors 'none'";

#[derive(Clone, Debug)]
pub struct Settings {
    pub host: IpAddr,
    /// The port to listen on; 0 selects any free port.
    pub port: u16,
    /// The callers that may use the API. If `None`, clients need a key, and the start fails until a key exists.
    pub access: Option<Access>,
    /// Names accepted in the `Host` header of local callers, besides localhost and loopback addresses.
    pub local_hosts: LocalHosts,
    /// Rate limit per key, or per address if no keys are in use. If `None`, the default limit applies with keys, and no
    /// limit without keys.
    pub rate: Option<Rate>,
    pub origins: Origins,
}

/// Returns the API's routes with all layers, ready to be served.
pub fn router(service: Service, access: Access, settings: &Settings) -> Router {
    with_layers(routes(), service, access, settings)
}

fn routes() -> OpenApiRouter {
    monitoring_routes()
        .routes(routes!(exports::submit::create, exports::list))
        .routes(routes!(activity::get))
        .routes(routes!(exports::submit::full))
        .routes(routes!(exports::submit::incremental))
        .routes(routes!(exports::submit::delta))
        .routes(routes!(exports::submit::incremental_of))
        .routes(routes!(watermarks::get, watermarks::delete))
        .routes(routes!(consumers::list))
        .routes(routes!(consumers::get, consumers::delete))
        .routes(routes!(schedules::list))
        .routes(routes!(datasets::list))
        .routes(routes!(datasets::get))
        .routes(routes!(exports::get, exports::delete))
        .routes(routes!(exports::events))
        .routes(routes!(exports::ack))
        .routes(routes!(exports::cancel))
        .routes(routes!(exports::submit::retry))
        .routes(routes!(exports::download::download))
        .routes(routes!(exports::download::download_part))
        .routes(routes!(exports::manifest::manifest))
        .routes(routes!(exports::url::url))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::redeliver))
        .routes(routes!(users::soft_delete))
        .routes(routes!(openapi::get))
        .routes(routes!(docs::page))
        .routes(routes!(symptoms::page))
        .route("/docs/{name}", get(docs::asset))
        .route("/", get(page::index))
        .route("/page/{name}", get(page::asset))
}

/// Returns only the monitoring routes, with all layers, for a process that runs exports but serves no API.
pub fn monitoring_router(service: Service, access: Access, settings: &Settings) -> Router {
    with_layers(monitoring_routes(), service, access, settings)
}

fn monitoring_routes() -> OpenApiRouter {
    OpenApiRouter::with_openapi(openapi::Base::openapi())
        .routes(routes!(ops::health))
        .routes(routes!(ops::live))
        .routes(routes!(ops::ready))
        .routes(routes!(ops::metrics))
}

fn with_layers(routes: OpenApiRouter, service: Service, access: Access, settings: &Settings) -> Router {
    let (routes, api) = routes.split_for_parts();
    let parameters = Parameters::from_api(&api);
    let control = AccessControl::new(access, settings, service.clone());
    let if_draining = move |_: &Response| service.is_draining().then(|| HeaderValue::from_static("close"));
    let routes = routes
        .method_not_allowed_fallback(async |method: Method, uri: Uri| Problem::method_not_allowed(&method, &uri))
        .fallback(async || Problem::not_found("there is nothing at this path"));
    // Layers run in reverse order: the last one added is the outermost.
    let routes = routes
        .layer(middleware::from_fn_with_state(parameters, query::check))
        .layer(Extension(RouterDocument::new(api)))
        .layer(Extension(access))
        .layer(middleware::from_fn(connections::count_requests))
        .layer(middleware::from_fn(finish_change))
        .layer(middleware::from_fn_with_state(control, access::check))
        .layer(middleware::from_fn(refuse_bad_heads))
        .layer(CatchPanicLayer::custom(problem::panic_response))
        .layer(middleware::map_response(problem::replace_foreign_errors));
    // This layer is outside access control for two reasons. Browsers send the CORS preflight request without a key. Web
    // pages must also be able to read the responses of refused requests.
    let routes = match settings.origins.layer() {
        Some(origins) => routes.layer(origins),
        None => routes,
    };
    let routes = routes
        .layer(SetResponseHeaderLayer::overriding(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")))
        // Responses contain rows and names from a user's table. No shared cache and no browser may store them. A
        // response that contains neither sets its own `Cache-Control`.
        .layer(SetResponseHeaderLayer::if_not_present(header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
        // Pages of other origins must not embed a response. This header does not affect pages allowed by CORS, because
        // browsers evaluate it only for embedding.
        .layer(SetResponseHeaderLayer::overriding(RESOURCE_POLICY, HeaderValue::from_static("same-origin")))
        // No page may embed a response or run a script in it. The pages have policies of their own.
        .layer(SetResponseHeaderLayer::if_not_present(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(NO_CONTENT),
        ))
        // No page that opens one of these keeps a handle to it.
        .layer(SetResponseHeaderLayer::overriding(OPENER_POLICY, HeaderValue::from_static("same-origin")))
        // During a drain, clients with keep-alive connections, such as proxies, open their next connection to another
        // process. So no request is lost when this process exits.
        .layer(SetResponseHeaderLayer::overriding(header::CONNECTION, if_draining));
    with_request_ids(routes).layer(SetSensitiveRequestHeadersLayer::new([header::AUTHORIZATION]))
}

/// Runs a call that changes something to its end, even if its client goes away or its key is revoked meanwhile.
///
/// Otherwise a change could end halfway: without its line in the audit log, for example.
async fn finish_change(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    match tokio::spawn(next.run(request).in_current_span()).await {
        Ok(answer) => answer,
        Err(stopped) => match stopped.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Problem::internal().into_response(),
        },
    }
}

/// Assigns an id to each request. The response and the log lines of the request contain this id.
fn with_request_ids(routes: Router) -> Router {
    routes
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(middleware::from_fn(traces::record_span))
        .layer(middleware::from_fn(log_request))
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(middleware::from_fn(drop_invalid_ids))
}

/// Removes a request id chosen by the client if it does not fit into a log line or if it is a key.
async fn drop_invalid_ids(mut request: Request, next: Next) -> Response {
    let is_id = |id: &&str| id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_graphic()) && !key::is_in(id);
    if request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(is_id).is_none() {
        request.headers_mut().remove(REQUEST_ID);
    }
    next.run(request).await
}

/// Adds the request id and the public part of the key to each log line of a request. Also logs the request itself at
/// level debug.
async fn log_request(path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    // The span has level error so that every configured log level includes its fields.
    let span = tracing::error_span!("request", requestId = id, key = tracing::field::Empty);
    let answer = next.run(request).instrument(span.clone()).await;
    // The time ends at the head of the response. `route` is the route's template, because the client's path may contain
    // arbitrary text.
    let (route, status) = (path.as_ref().map(MatchedPath::as_str), answer.status().as_u16());
    let milliseconds = begun.elapsed().as_secs_f64() * 1_000.0;
    span.in_scope(|| tracing::debug!(event = "request", %method, route, status, milliseconds));
    answer
}

async fn refuse_bad_heads(request: Request, next: Next) -> Result<Response, Problem> {
    let path_and_query = request.uri().path_and_query().map_or(0, |p| p.as_str().len());
    if path_and_query > MAX_URI_BYTES {
        return Err(Problem::new(Code::UriTooLong, "a path with its query has 8 KB at most"));
    }
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(Problem::new(Code::HeadersTooLarge, "a request has 100 headers and 32 KB of them at most"));
    }
    // RFC 9112, sections 3.2 and 6.1. A proxy in front may understand such a request in another way.
    if request.version() == Version::HTTP_11 && !headers.contains_key(header::HOST) {
        return Err(Problem::bad_input(Code::BadRequest, "Host", "a request of HTTP/1.1 has the header Host"));
    }
    if headers.get_all(header::TRANSFER_ENCODING).iter().count() > 1 {
        return Err(Problem::bad_input(Code::BadRequest, "Transfer-Encoding", "it may be given once"));
    }
    Ok(next.run(request).await)
}

pub async fn listen(settings: &Settings) -> std::io::Result<TcpListener> {
    let address = SocketAddr::from((settings.host, settings.port));
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // std sets the same option: closed connections of an earlier process may still occupy the port.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves requests until `shutdown`. Then waits at most [`DRAIN_TIMEOUT`] for open responses.
pub async fn serve(listener: TcpListener, router: Router, limits: ConnectionLimits, shutdown: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let mut http1 = hyper::server::conn::http1::Builder::new();
    http1.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT).max_headers(MAX_HEADERS_READ);
    http1.max_buf_size(CONNECTION_BUFFER_BYTES);
    let connections = Connections::new(limits).await;
    let (failures, refusals) = (LogThrottle::default(), LogThrottle::default());
    loop {
        let accepted = tokio::select! { accepted = listener.accept() => accepted, () = shutdown.cancelled() => break };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, peer.ip()),
            Err(error) => {
                // The usual cause is that no file descriptors are left. Connections that end release some.
                if let Some(times) = failures.should_log(error.to_string()) {
                    tracing::warn!(event = "accept_failed", error = %error, times);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(share) = connections.admit(peer) else {
            if let Some(times) = refusals.should_log(peer.to_string()) {
                tracing::warn!(event = "connection_refused", address = %peer, times);
            }
            connections.refuse(stream);
            continue;
        };
        let served = graceful.watch(serve_connection(&http1, &router, stream, Peer(peer), connections.requests()));
        tokio::spawn(async move {
            // Errors caused by a client that disconnects are not logged.
            let _ = served.await;
            drop(share);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
}

fn serve_connection(
    http1: &hyper::server::conn::http1::Builder,
    router: &Router,
    stream: TcpStream,
    peer: Peer,
    requests: RequestShares,
) -> impl GracefulConnection<Error = hyper::Error> + use<> {
    stream::prepare(&stream);
    let routes = TowerToHyperService::new(router.clone());
    let service = service_fn(move |mut request: axum::http::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(requests.clone());
        let is_read = Arc::<AtomicBool>::default();
        let request = request.map(|body| RequestBody::new(body, Arc::clone(&is_read)));
        let answer = routes.call(request);
        async move {
            let mut answer = answer.await?;
            // hyper closes a connection whose request body was not read. The client must know that before it sends
            // another request.
            if !is_read.load(Ordering::Relaxed) {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    http1.serve_connection(TokioIo::new(ClientStream::new(stream)), service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn log_line_of_a_panic_has_the_request_id_of_the_response() {
        #[derive(Clone, Default)]
        struct Log(Arc<std::sync::Mutex<Vec<u8>>>);
        impl std::io::Write for Log {
            fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(text);
                Ok(text.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let log = Log::default();
        let writer = log.clone();
        let _logging = tracing::subscriber::set_default(
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish(),
        );
        let panics = async || -> () { panic!("a defect") };
        let routes = Router::new().route("/", get(panics)).layer(CatchPanicLayer::custom(problem::panic_response));
        let request = Request::builder().uri("/").header(REQUEST_ID, "mine").body(axum::body::Body::empty()).unwrap();
        let answer = TowerToHyperService::new(with_request_ids(routes)).call(request).await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()[REQUEST_ID]), (500, &HeaderValue::from_static("mine")));
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let line = log.lines().find(|line| line.contains("request_panicked")).expect(&log);
        assert!(line.contains("a defect") && line.contains(r#""requestId":"mine""#), "{line}");
    }

    #[tokio::test]
    async fn accept_queue_holds_hundreds_of_connections() {
        let settings = Settings {
            host: std::net::Ipv4Addr::LOCALHOST.into(),
            port: 0,
            access: None,
            local_hosts: LocalHosts::default(),
            rate: None,
            origins: Origins::default(),
        };
        let listener = listen(&settings).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        for number in 0..400 {
            let connected = tokio::time::timeout(Duration::from_millis(900), TcpStream::connect(address)).await;
            waiting.push(connected.unwrap_or_else(|_| panic!("connection {number} has no room")).unwrap());
        }
    }
}
