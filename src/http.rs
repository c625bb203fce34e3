//! The API: routes, layers and the loop that serves them.
//!
//! Knows `service` and the nouns; `problem` has the only status codes of errors. No SQL, no files, no environment.

mod access;
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
mod json;
mod local;
mod message;
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
mod traces;
mod users;
mod watermarks;

use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::{self, Next};
use axum::response::Response;
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
pub use message::take_message;
pub use rate::Rate;

use crate::http::access::{AccessControl, Peer};
use crate::http::code::Code;
use crate::http::connections::{Connection, Connections};
use crate::http::openapi::RouterDocument;
use crate::http::problem::Problem;
use crate::http::query::Parameters;
use crate::http::stream::{AnswerBody, ClientStream};
use crate::key;
use crate::service::Service;
use crate::telemetry::log_throttle::LogThrottle;

/// A client has this long to send a request's head, and again this long to send its body.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// After a stop, answers under way, downloads too, have this long to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// The most connections that wait to be accepted, if the system allows as many (`net.core.somaxconn`). Clients beyond them try again a
/// second later.
const BACKLOG: u32 = 4_096;
const MAX_URI_BYTES: usize = 8 * 1024;
const MAX_HEADERS: usize = 100;
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// The most headers that hyper reads. Up to here a request with too many headers gets a problem as its answer; beyond, hyper answers
/// without a body.
const MAX_HEADERS_READ: usize = 1000;
/// The buffer of each connection; hyper's default is 400 KiB. A head whose URI or headers are somewhat too long still fits, so that it gets
/// a problem as its answer.
const CONNECTION_BYTES: usize = 64 * 1024;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const EMBEDDED_BY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// The API's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address to listen on.
    pub host: IpAddr,
    /// The port; 0: any free one.
    pub port: u16,
    /// The callers that are let in; `None`: clients with a key, and the start fails until a key exists.
    pub access: Option<Access>,
    /// Names that a local caller may have in `Host`, besides localhost and loopback addresses.
    pub local_hosts: LocalHosts,
    /// How many requests each key may send, or each address where there are no keys; `None`: the default limit with keys, else none.
    pub rate: Option<Rate>,
    /// The origins whose web pages may call.
    pub origins: Origins,
}

/// The API's routes with every layer, ready to be served.
pub fn router(service: Service, access: Access, settings: &Settings) -> Router {
    layered(routes(), service, access, settings)
}

/// The routes with their descriptions.
fn routes() -> OpenApiRouter<Service> {
    watched()
        .routes(routes!(exports::submit::create, exports::list))
        .routes(routes!(exports::submit::full))
        .routes(routes!(exports::submit::incremental))
        .routes(routes!(exports::submit::delta))
        .routes(routes!(exports::submit::incremental_of))
        .routes(routes!(watermarks::get, watermarks::put, watermarks::delete))
        .routes(routes!(consumers::list))
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
        .route("/docs/{name}", get(docs::asset))
        .route("/", get(page::index))
        .route("/page/{name}", get(page::asset))
}

/// The routes for monitoring alone, with every layer: for a process that runs exports and has no API.
pub fn watched_router(service: Service, access: Access, settings: &Settings) -> Router {
    layered(watched(), service, access, settings)
}

fn watched() -> OpenApiRouter<Service> {
    OpenApiRouter::with_openapi(openapi::Base::openapi())
        .routes(routes!(ops::health))
        .routes(routes!(ops::live))
        .routes(routes!(ops::ready))
        .routes(routes!(ops::metrics))
}

fn layered(routes: OpenApiRouter<Service>, service: Service, access: Access, settings: &Settings) -> Router {
    let (routes, api) = routes.split_for_parts();
    let parameters = Parameters::of(&api);
    let near = parameters.clone();
    let control = AccessControl::new(access, settings, service.clone());
    let draining = service.clone();
    let if_draining = move |_: &Response| draining.is_draining().then(|| HeaderValue::from_static("close"));
    let routes = routes
        .method_not_allowed_fallback(async |method: Method, uri: Uri| Problem::method_not_allowed(&method, &uri))
        .fallback(move |uri: Uri| {
            ready(Problem::not_found(&format!("there is nothing at this path{}", near.near(uri.path()))))
        })
        .with_state(service);
    // From the inside out.
    let routes = routes
        .layer(middleware::from_fn_with_state(parameters, query::check))
        .layer(Extension(RouterDocument::of(api)))
        .layer(middleware::from_fn(connections::activate))
        .layer(middleware::from_fn_with_state(control, access::check))
        .layer(middleware::from_fn(refuse_long_heads))
        .layer(CatchPanicLayer::custom(problem::for_panic))
        .layer(middleware::map_response(problem::for_foreign_errors));
    // Outside access control: a browser asks without a key whether a page may call, and the page shall read refusals too.
    let routes = match settings.origins.layer() {
        Some(origins) => routes.layer(origins),
        None => routes,
    };
    let routes = routes
        .layer(SetResponseHeaderLayer::overriding(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")))
        // Answers hold rows and names of a user's table, which no cache on the way or in a browser shall keep. An answer without any says
        // so itself.
        .layer(SetResponseHeaderLayer::if_not_present(header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
        // Pages of other origins can't embed an answer. It doesn't hinder pages that CORS lets in: browsers ask it about embedding alone.
        .layer(SetResponseHeaderLayer::overriding(EMBEDDED_BY, HeaderValue::from_static("same-origin")))
        // Whoever keeps connections, as a proxy does, has the next one elsewhere, and loses no call when the process ends.
        .layer(SetResponseHeaderLayer::overriding(header::CONNECTION, if_draining));
    named(routes).layer(SetSensitiveRequestHeadersLayer::new([header::AUTHORIZATION]))
}

/// Gives each request an id, which its answer and its log lines have.
fn named(routes: Router) -> Router {
    routes
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(middleware::from_fn(traces::in_a_span))
        .layer(middleware::from_fn(log_with_its_id))
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(middleware::from_fn(drop_odd_ids))
}

/// Removes a request id that the client chose if a log line can't hold it, or if it is a key.
async fn drop_odd_ids(mut request: Request, next: Next) -> Response {
    let is_id = |id: &&str| id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_graphic()) && !key::is_in(id);
    if request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(is_id).is_none() {
        request.headers_mut().remove(REQUEST_ID);
    }
    next.run(request).await
}

/// Gives each log line of a request the request's id and the public part of its key, and logs the request itself for who debugs.
async fn log_with_its_id(path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    // At the level of an error, so that no log level takes it away.
    let span = tracing::error_span!("request", requestId = id, key = tracing::field::Empty);
    let answer = next.run(request).instrument(span.clone()).await;
    // Up to the head of the answer. The route's path, not the client's, which may hold anything.
    let (route, status) = (path.as_ref().map(MatchedPath::as_str), answer.status().as_u16());
    let milliseconds = begun.elapsed().as_secs_f64() * 1_000.0;
    span.in_scope(|| tracing::debug!(event = "request", %method, route, status, milliseconds));
    answer
}

/// Reads a service's answer, for the command line. `None`: the text is no JSON, or not of the form that `T` has.
pub fn answer_from_json<T: serde::de::DeserializeOwned>(text: &[u8]) -> Option<T> {
    json::read(text, json::Strict::Value).ok()?;
    serde_json::from_slice(text).ok()
}

async fn refuse_long_heads(request: Request, next: Next) -> Result<Response, Problem> {
    let path_and_query = request.uri().path_and_query().map_or(0, |p| p.as_str().len());
    if path_and_query > MAX_URI_BYTES {
        return Err(Problem::new(Code::UriTooLong, "a path with its query has 8 KB at most"));
    }
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(Problem::new(Code::HeadersTooLarge, "a request has 100 headers and 32 KB of them at most"));
    }
    Ok(next.run(request).await)
}

/// Opens the port.
///
/// # Errors
/// If the address can't be listened on.
pub async fn listen(settings: &Settings) -> std::io::Result<TcpListener> {
    let address = SocketAddr::from((settings.host, settings.port));
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As std does: the last connections of an earlier process linger on the port.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `shutdown`, then waits for answers under way, [`DRAIN_TIMEOUT`] at most.
pub async fn serve(listener: TcpListener, router: Router, limits: ConnectionLimits, shutdown: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let mut http1 = hyper::server::conn::http1::Builder::new();
    http1.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT).max_headers(MAX_HEADERS_READ);
    http1.max_buf_size(CONNECTION_BYTES);
    let connections = Connections::new(limits);
    let throttle = LogThrottle::default();
    let next = async || {
        let (stream, peer) = listener.accept().await?;
        let connection = connections.admit(peer.ip()).await;
        std::io::Result::Ok((stream, Peer(peer.ip()), connection))
    };
    loop {
        let accepted = tokio::select! { accepted = next() => accepted, () = shutdown.cancelled() => break };
        let (stream, peer, connection) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely there are no file descriptors left: connections that end will free some.
                if let Some(times) = throttle.should_log(error.to_string()) {
                    tracing::warn!(event = "accept_failed", error = %error, times);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let served = graceful.watch(serve_connection(&http1, &router, stream, peer, &connection));
        tokio::spawn(async move {
            // The error of a client that goes away is nothing to log.
            tokio::select! { _ = served => {}, () = connection.gone() => {} }
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
    connection: &Arc<Connection>,
) -> impl GracefulConnection<Error = hyper::Error> + use<> {
    stream::prepare(&stream);
    let answered = Arc::new(AtomicBool::new(false));
    let stream = ClientStream::new(stream, Arc::clone(connection), Arc::clone(&answered));
    let (routes, connection) = (TowerToHyperService::new(router.clone()), Arc::clone(connection));
    let service = service_fn(move |mut request: axum::http::Request<Incoming>| {
        connection.begins();
        answered.store(false, Ordering::Relaxed);
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(Arc::clone(&connection));
        let (answer, answered) = (routes.call(request), Arc::clone(&answered));
        async move { answer.await.map(|answer| answer.map(|body| AnswerBody::new(body, answered))) }
    });
    http1.serve_connection(TokioIo::new(stream), service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_logged_under_the_request_id_of_its_answer() {
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
        let routes = Router::new().route("/", get(panics)).layer(CatchPanicLayer::custom(problem::for_panic));
        let request = Request::builder().uri("/").header(REQUEST_ID, "mine").body(axum::body::Body::empty()).unwrap();
        let answer = TowerToHyperService::new(named(routes)).call(request).await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()[REQUEST_ID]), (500, &HeaderValue::from_static("mine")));
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let line = log.lines().find(|line| line.contains("request_panicked")).expect(&log);
        assert!(line.contains("a defect") && line.contains(r#""requestId":"mine""#), "{line}");
    }

    #[tokio::test]
    async fn hundreds_may_wait_to_be_accepted() {
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
