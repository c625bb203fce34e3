//! Access control: decides which callers may use which routes. The callers are on this machine, anyone, or clients with
//! a key.
//!
//! `local` decides if a caller is on this machine. With `AUTH=keys`, every route needs a key, except those in
//! [`is_open`]. A caller with a key has the rights of that key, whatever `AUTH` is. This file checks the scope of a key
//! against the route, and binds the service to the consumers and datasets of the key. `input` checks the consumer and
//! the dataset that a request names, and `service` shows of a job only what the caller may see.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::audit::{Action, Origin};
use crate::http::code::Code;
use crate::http::local::{self, LocalHosts};
use crate::http::problem::Problem;
use crate::http::rate::{Rate, RateKey, RateLimits, client_network};
use crate::http::{Origins, REQUEST_ID, Settings};
use crate::job::Bounds;
use crate::key::{self, Grant, Prefix, PresentedKey, Scope};
use crate::service::{Service, Subscriber};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Callers on this machine, excluding proxies. Web pages of other origins need an entry in [`Origins`].
    LocalCallers,
    /// Every client that reaches the port.
    Everybody,
    /// Clients with a key that has the scope of the route.
    Keys,
}

/// Decides which requests are allowed and enforces the rate limit of each client.
#[derive(Clone)]
pub(crate) struct AccessControl {
    access: Access,
    hosts: LocalHosts,
    origins: Origins,
    service: Service,
    limits: Option<Arc<RateLimits>>,
}

impl AccessControl {
    /// Creates access control from the settings. With keys, a rate limit always applies.
    pub(crate) fn new(access: Access, settings: &Settings, service: Service) -> AccessControl {
        let rate = settings.rate.or((access == Access::Keys).then(Rate::default_with_keys));
        let (hosts, origins) = (settings.local_hosts.clone(), settings.origins.clone());
        AccessControl { access, hosts, origins, service, limits: rate.map(|rate| Arc::new(RateLimits::new(rate))) }
    }

    fn charge(&self, key: RateKey) -> Result<(), Problem> {
        let charged = self.limits.as_ref().map_or(Ok(()), |limits| limits.charge(key));
        charged.map_err(Problem::rate_limited)
    }

    async fn key(&self, headers: &HeaderMap, address: IpAddr, path: &str) -> Result<GrantedKey, Problem> {
        let key = bearer(headers);
        // A guess is charged to its address. A key that exists isn't, so that guesses from a shared address lock out
        // nobody who has one.
        let is_known = match &key {
            Ok(key) => self.service.keyring().is_known(key).await,
            Err(_) => false,
        };
        if !is_known {
            self.charge(RateKey::Address(address))?;
        }
        let key = key?;
        let grant = match path {
            "/metrics" => self.service.keyring().grant_for_monitoring(&key).await?,
            _ => self.service.keyring().grant(&key).await?,
        };
        self.charge(RateKey::Key(&grant.prefix))?;
        Ok((key, grant))
    }
}

/// The key of a request, and what it grants.
type GrantedKey = (PresentedKey, Arc<Grant>);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// The grant of the key that a request was sent with. `None` if the request needed no key.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(super) Option<Arc<Grant>>);

impl Caller {
    pub(crate) fn key(&self) -> Option<&Prefix> {
        self.0.as_ref().map(|grant| &grant.prefix)
    }

    /// Returns true if the caller may use operations reserved for operators.
    pub(crate) fn is_admin(&self) -> bool {
        self.0.as_ref().is_none_or(|grant| grant.allows(Scope::Admin))
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Caller, Problem> {
        // `check` always inserts a `Caller`. A request without one must not count as permitted.
        parts.extensions.get().cloned().ok_or_else(Problem::internal)
    }
}

/// The service as [`check`] bound it to the caller. The routes have no other, so no handler sees more than its caller.
impl<S: Sync> FromRequestParts<S> for Service {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Service, Response> {
        service_of(parts).cloned().map_err(Problem::into_response)
    }
}

pub(crate) fn service_of(parts: &Parts) -> Result<&Service, Problem> {
    parts.extensions.get().ok_or_else(Problem::internal)
}

/// The identity by which subscriptions of a client are counted: its key, or its address if it has no key. Each client
/// may follow a limited number of jobs at a time.
pub(crate) struct RequestSubscriber(pub(crate) Subscriber);

impl<S: Sync> FromRequestParts<S> for RequestSubscriber {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<RequestSubscriber, Problem> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let address = parts.extensions.get().map_or(Ipv4Addr::UNSPECIFIED.into(), |Peer(address)| *address);
        let by_key = caller.key().map(|prefix| Subscriber::Key(prefix.clone()));
        Ok(RequestSubscriber(by_key.unwrap_or_else(|| Subscriber::Address(client_network(address)))))
    }
}

/// Layer that refuses requests not permitted by [`Access`] and requests above the rate limit.
pub(crate) async fn check(
    State(control): State<AccessControl>,
    peer: Option<Extension<Peer>>,
    path: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    // Requests without a known peer address share a bucket.
    let address = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |Extension(Peer(address))| address);
    let path = path.as_ref().map_or("", MatchedPath::as_str);
    if control.access == Access::LocalCallers {
        local::check(&request, &control.hosts, &control.origins)?;
    }
    if is_open(path) || control.access != Access::Keys && !has_own_key(request.headers()) {
        if !is_unlimited(path) {
            control.charge(RateKey::Address(address))?;
        }
        let origin = Arc::new(Origin::call(None, request_id(&request)));
        let service = control.service.for_request(&Bounds::NONE, None, origin);
        request.extensions_mut().insert(Caller(None));
        request.extensions_mut().insert(service);
        return Ok(next.run(request).await);
    }
    let (key, grant) = control.key(request.headers(), address, path).await?;
    tracing::Span::current().record("key", grant.prefix.as_str());
    let (scope, action) = (scope_of(request.method(), path), action_of(request.method(), path));
    let origin = Arc::new(Origin::call(Some(&grant.prefix), request_id(&request)));
    let is_allowed = grant.allows(scope);
    let service = control.service.for_request(&grant.bounds, Some(&grant.prefix), Arc::clone(&origin));
    request.extensions_mut().insert(Caller(Some(grant)));
    request.extensions_mut().insert(service);
    let answer = if is_allowed {
        tokio::select! {
            answer = next.run(request) => answer,
            () = control.service.keyring().revoked(&key) => return Err(Problem::key_invalid()),
        }
    } else {
        Problem::scope_missing(scope).into_response()
    };
    if let Some(code) = logged_refusal(&answer) {
        origin.log_refusal(action, code.as_str());
    }
    Ok(end_when_revoked(answer, control.service, key))
}

/// Returns the code of a response that has an audit line: the key is valid, and the request is refused.
fn logged_refusal(answer: &Response) -> Option<Code> {
    let is_logged =
        matches!(answer.status(), StatusCode::FORBIDDEN | StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY);
    answer.extensions().get().copied().filter(|_| is_logged)
}

fn request_id(request: &Request) -> Option<String> {
    request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).map(str::to_owned)
}

/// Returns true if a route needs no key: health checks, the API's document, and the pages, of which one asks for the
/// key. `path` must be the route's template, never the path sent by the client.
pub(crate) fn is_open(path: &str) -> bool {
    let is_page = matches!(path, "/docs" | "/openapi.json" | "/symptoms" | "/" | "/page/{name}");
    is_page || path.starts_with("/docs/") || is_unlimited(path)
}

/// Returns true if a route has no rate limit. Monitoring checks the health of a busy process, too.
pub(crate) fn is_unlimited(path: &str) -> bool {
    matches!(path, "/health" | "/health/live" | "/health/ready")
}

pub(crate) fn scope_of(method: &Method, path: &str) -> Scope {
    match (path, method) {
        ("/metrics" | "/users/{id}" | "/deliveries" | "/deliveries/{deliveryId}/redeliver", _) => Scope::Admin,
        ("/consumers/{consumerId}", &Method::DELETE) => Scope::Admin,
        // A client that may download a file may also acknowledge it.
        ("/exports/{jobId}/ack", _) => Scope::Read,
        (_, &Method::GET | &Method::HEAD) => Scope::Read,
        _ => Scope::Write,
    }
}

fn action_of(method: &Method, path: &str) -> Action {
    match (path, method) {
        ("/exports/{jobId}/download" | "/exports/{jobId}/files/{part}/download" | "/exports/{jobId}/url", _) => {
            Action::Download
        }
        (_, &Method::GET | &Method::HEAD) => Action::Read,
        ("/exports/{jobId}/ack", _) => Action::Acknowledge,
        ("/exports/{jobId}/cancel", _) => Action::Cancel,
        ("/exports/{jobId}/retry", _) => Action::Retry,
        ("/exports/{jobId}", _) => Action::RemoveFile,
        ("/exports/watermark", _) => Action::DeleteWatermark,
        ("/deliveries/{deliveryId}/redeliver", _) => Action::Redeliver,
        ("/consumers/{consumerId}", _) => Action::RemoveConsumer,
        ("/users/{id}", _) => Action::DeleteUser,
        _ => Action::Export,
    }
}

/// Reads the key from `Authorization: Bearer` (RFC 6750). The URL is not accepted as a place for keys, because proxies
/// log URLs.
fn bearer(headers: &HeaderMap) -> Result<PresentedKey, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Err(Problem::key_required()),
        (Some(value), None) => value.to_str().unwrap_or_default(),
        (Some(_), Some(_)) => return Err(Problem::key_invalid()),
    };
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Problem::key_required());
    }
    token.trim_start_matches(' ').parse().map_err(|_| Problem::key_invalid())
}

/// Returns true if a request has a key of this service, valid or not. Other authorizations are those of a proxy.
pub(crate) fn has_own_key(headers: &HeaderMap) -> bool {
    headers.get_all(header::AUTHORIZATION).iter().any(|value| {
        let value = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        value.split([' ', '\t', ',']).any(|part| part.starts_with(key::SCHEME))
    })
}

/// Ends a streamed response, such as a download or events, when its key is revoked or expires.
///
/// A separate task checks the key. The body is polled only while the client reads, so a lookup started there could hold
/// a database connection indefinitely.
fn end_when_revoked(answer: Response, service: Service, key: PresentedKey) -> Response {
    if answer.body().size_hint().exact().is_some() {
        return answer;
    }
    let gone = CancellationToken::new();
    let revoked = gone.clone();
    let watch = async move {
        service.keyring().revoked(&key).await;
        revoked.cancel();
        tracing::info!(event = "answer_broken_off", "the key of a download or of events was revoked or has expired");
    };
    let watcher = AbortOnDropHandle::new(tokio::spawn(watch.in_current_span()));
    answer.map(|body| {
        let gone = async move {
            gone.cancelled().await;
            drop(watcher);
        };
        Body::from_stream(body.into_data_stream().take_until(Box::pin(gone)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_read_from_exactly_one_bearer_header() {
        let (_, key) = PresentedKey::random();
        let code = |values: &[&str]| {
            let values = values.iter().map(|value| (header::AUTHORIZATION, value.parse().unwrap()));
            bearer(&values.collect()).err().map(|problem| problem.code())
        };
        for good in ["Bearer", "bearer", "BEARER", "Bearer "] {
            assert_eq!(code(&[&format!("{good} {key}")]), None, "{good}");
        }
        for none in [&[][..], &[""], &["Basic dXNlcjpwYXNz"], &[&key], &["Bearerer x"]] {
            assert_eq!(code(none), Some("key_required"), "{none:?}");
        }
        let good = format!("Bearer {key}");
        for bad in [&[&*good, &good][..], &["Bearer"], &["Bearer "], &[&format!("{good} x")], &[&format!("{good}=")]] {
            assert_eq!(code(bad), Some("key_invalid"), "{bad:?}");
        }
    }

    #[test]
    fn the_authorization_of_a_proxy_is_no_key() {
        let headers = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        let has_own = |value: &str| has_own_key(&headers(value));
        let (_, key) = PresentedKey::random();
        for own in [&format!("bearer  {key}"), "Bearer cdcx_0", "Bearer\tCDCX_0", "Basic x, Bearer cdcx_0", &*key] {
            assert!(has_own(own), "{own}");
        }
        for other in ["", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.xcdcx_", "Basic dXNlcjpwYXNz"] {
            assert!(!has_own(other), "{other}");
        }
    }
}
