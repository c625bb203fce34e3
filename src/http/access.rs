//! Access control: who may call which route. Callers on this machine, everybody, or clients with a key.
//!
//! `local` decides whether a caller is on this machine. With `AUTH=keys` every route needs a key that this file doesn't name as open.
//! A key's scope is checked here, by the route. Whether a key is for a consumer is checked where a request names a consumer or a job
//! (`input`), and in lists.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::http::local::{self, LocalHosts};
use crate::http::problem::Problem;
use crate::http::rate::{Rate, RateKey, RateLimits, client_network};
use crate::http::{Origins, Settings};
use crate::job::{ConsumerId, Job};
use crate::key::{Grant, Prefix, PresentedKey, Scope};
use crate::service::{Service, Subscriber};

/// The callers that are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Callers on this machine, but no proxy, and no web page of another origin, unless that is listed.
    LocalCallers,
    /// Every client that reaches the port.
    Everybody,
    /// Clients with a key whose scope is the route's.
    Keys,
}

/// Decides which requests are let in, and how many of each client.
#[derive(Clone)]
pub(crate) struct AccessControl {
    access: Access,
    hosts: LocalHosts,
    origins: Origins,
    service: Service,
    limits: Option<Arc<RateLimits>>,
}

impl AccessControl {
    /// Access control by the settings. With keys there is always a rate limit.
    pub(crate) fn new(access: Access, settings: &Settings, service: Service) -> AccessControl {
        let rate = settings.rate.or((access == Access::Keys).then(Rate::generous));
        let (hosts, origins) = (settings.local_hosts.clone(), settings.origins.clone());
        AccessControl { access, hosts, origins, service, limits: rate.map(|rate| Arc::new(RateLimits::new(rate))) }
    }

    fn charge(&self, key: RateKey) -> Result<(), Problem> {
        let charged = self.limits.as_ref().map_or(Ok(()), |limits| limits.charge(key));
        charged.map_err(Problem::rate_limited)
    }

    /// The key of a request, and what the key permits.
    async fn key(&self, headers: &HeaderMap, address: IpAddr) -> Result<(PresentedKey, Arc<Grant>), Problem> {
        let key = bearer(headers);
        // A request with an unknown key counts for its address, before the database is asked: guessing keys is limited.
        if !key.as_ref().is_ok_and(|key| self.service.keyring().knows(key)) {
            self.charge(RateKey::Address(address))?;
        }
        let key = key?;
        let grant = self.service.keyring().grant(&key).await?;
        self.charge(RateKey::Key(&grant.prefix))?;
        Ok((key, grant))
    }
}

/// The address at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Whose exports a request may see and make.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Option<Arc<Grant>>);

impl Caller {
    /// A caller that may see and make all exports.
    pub(crate) fn anybody() -> Caller {
        Caller(None)
    }

    /// Checks that the caller may see and make exports of this consumer; `None`: ad-hoc ones.
    ///
    /// # Errors
    /// If the caller's key is for other consumers.
    pub(crate) fn require(&self, consumer: Option<&ConsumerId>) -> Result<(), Problem> {
        let permitted = self.0.as_ref().is_none_or(|grant| grant.is_for(consumer));
        if permitted { Ok(()) } else { Err(Problem::consumer_not_allowed(consumer)) }
    }

    /// The consumers whose exports the caller may see; `None`: all exports.
    pub(crate) fn consumers(&self) -> Option<&[ConsumerId]> {
        self.0.as_ref().and_then(|grant| grant.consumers.as_deref())
    }

    /// The public part of the caller's key; `None`: no key was asked for.
    pub(crate) fn key(&self) -> Option<&Prefix> {
        self.0.as_ref().map(|grant| &grant.prefix)
    }

    /// Returns true if the caller may do what only operators may.
    pub(crate) fn is_admin(&self) -> bool {
        self.0.as_ref().is_none_or(|grant| grant.allows(Scope::Admin))
    }

    /// Returns true if the caller may see a job.
    pub(crate) fn sees(&self, job: &Job) -> bool {
        self.0.as_ref().is_none_or(|grant| grant.is_for(job.consumer.as_ref()))
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Caller, Problem> {
        // `check` always puts it there: without it the route would be open.
        parts.extensions.get().cloned().ok_or_else(Problem::internal)
    }
}

/// The client of a request, by its key, or by its address if it has no key. The number of jobs that a client follows is limited.
pub(crate) struct CallerSubscriber(pub(crate) Subscriber);

impl<S: Sync> FromRequestParts<S> for CallerSubscriber {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<CallerSubscriber, Problem> {
        let Caller(grant) = Caller::from_request_parts(parts, state).await?;
        let address = parts.extensions.get().map_or(Ipv4Addr::UNSPECIFIED.into(), |Peer(address)| *address);
        let by_key = grant.map(|grant| Subscriber::Key(grant.prefix.clone()));
        Ok(CallerSubscriber(by_key.unwrap_or_else(|| Subscriber::Address(client_network(address)))))
    }
}

/// The layer that refuses the requests which [`Access`] doesn't let in, and those beyond the rate limit.
pub(crate) async fn check(
    State(control): State<AccessControl>,
    peer: Option<Extension<Peer>>,
    path: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    // Requests whose sender's address isn't known share a bucket.
    let address = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |Extension(Peer(address))| address);
    let path = path.as_ref().map_or("", MatchedPath::as_str);
    if control.access == Access::LocalCallers {
        local::check(&request, &control.hosts, &control.origins)?;
    }
    if is_open(path) || control.access != Access::Keys {
        if !is_free(path) {
            control.charge(RateKey::Address(address))?;
        }
        request.extensions_mut().insert(Caller(None));
        return Ok(next.run(request).await);
    }
    let (key, grant) = control.key(request.headers(), address).await?;
    tracing::Span::current().record("key", grant.prefix.as_str());
    let scope = scope_of(request.method(), path);
    if !grant.allows(scope) {
        return Err(Problem::scope_missing(scope));
    }
    request.extensions_mut().insert(Caller(Some(grant)));
    let answer = tokio::select! {
        answer = next.run(request) => answer,
        () = control.service.keyring().gone(&key) => return Err(Problem::key_invalid()),
    };
    Ok(while_good(answer, control.service, key))
}

/// Returns true if a route needs no key: health checks, the API's document, and the page that asks for the key. `path` is the route's, never what
/// a client wrote.
pub(crate) fn is_open(path: &str) -> bool {
    matches!(path, "/health" | "/health/live" | "/health/ready" | "/docs" | "/openapi.json" | "/" | "/page/{name}")
        || path.starts_with("/docs/")
}

/// Returns true if a route has no rate limit: monitoring asks for health while the process is busy, too.
pub(crate) fn is_free(path: &str) -> bool {
    matches!(path, "/health" | "/health/live" | "/health/ready")
}

/// The scope that a key needs to call a route.
pub(crate) fn scope_of(method: &Method, path: &str) -> Scope {
    match (path, method) {
        ("/metrics" | "/users/{id}" | "/deliveries" | "/deliveries/{deliveryId}/redeliver", _) => Scope::Admin,
        // Who may fetch a file may say that it is loaded.
        ("/exports/{jobId}/ack", _) => Scope::Read,
        (_, &Method::GET | &Method::HEAD) => Scope::Read,
        _ => Scope::Write,
    }
}

/// The key in `Authorization: Bearer` (RFC 6750). It is read from nowhere else: proxies log the addresses of requests.
fn bearer(headers: &HeaderMap) -> Result<PresentedKey, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Err(Problem::key_required()),
        (Some(value), None) => value.to_str().unwrap_or_default(),
        (Some(_), Some(_)) => return Err(Problem::key_invalid()),
    };
    let (scheme, key) = value.split_once(' ').unwrap_or((value, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Problem::key_required());
    }
    key.trim_start_matches(' ').parse().map_err(|_| Problem::key_invalid())
}

/// An answer that is sent over a longer time, a download or events, breaks off when its key is revoked. A task of its own looks at the key:
/// the body is polled only while its client reads, and a look-up that it had begun would hold a connection until then.
fn while_good(answer: Response, service: Service, key: PresentedKey) -> Response {
    if answer.body().size_hint().exact().is_some() {
        return answer;
    }
    let gone = CancellationToken::new();
    let tell = gone.clone();
    let watch = async move {
        service.keyring().gone(&key).await;
        tell.cancel();
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
    fn a_key_is_read_from_one_bearer_header() {
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
}
