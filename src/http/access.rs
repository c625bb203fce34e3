//! Who may call, and what: callers on this machine, everybody, or whoever has a key.
//!
//! Who is a caller on this machine, `local` says. With keys a route that isn't named here wants one. What a key permits is checked
//! here by the route's scope; whose exports it is for, where a consumer or a job is read from a request (`input`), and in lists.

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

use crate::http::local::{LocalHosts, Sender};
use crate::http::problem::Problem;
use crate::http::rate::{Rate, RateKey, RateLimits, client_network};
use crate::http::{Origins, Settings};
use crate::job::{ConsumerId, Job};
use crate::key::{Grant, Prefix, PresentedKey, Scope};
use crate::service::{Service, Subscriber};

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Callers on this machine, but no proxy, and no web page of another origin, unless that is listed.
    LocalCallers,
    /// Everybody who reaches the port.
    Everybody,
    /// Whoever has a key for it.
    Keys,
}

/// What lets requests in.
#[derive(Clone, Debug)]
pub(crate) struct AccessControl {
    access: Access,
    hosts: LocalHosts,
    origins: Origins,
    service: Service,
    limits: Option<Arc<RateLimits>>,
}

impl AccessControl {
    /// Where there are keys there is a limit.
    pub(crate) fn new(access: Access, settings: &Settings, service: Service) -> AccessControl {
        let rate = settings.rate.or((access == Access::Keys).then(Rate::generous));
        let (hosts, origins) = (settings.local_hosts.clone(), settings.origins.clone());
        AccessControl { access, hosts, origins, service, limits: rate.map(|rate| Arc::new(RateLimits::new(rate))) }
    }

    fn charge(&self, key: RateKey) -> Result<(), Problem> {
        let charged = self.limits.as_ref().map_or(Ok(()), |limits| limits.charge(key));
        charged.map_err(Problem::rate_limited)
    }

    /// The key that a request has, and what it permits.
    async fn key(&self, headers: &HeaderMap, address: IpAddr) -> Result<(PresentedKey, Arc<Grant>), Problem> {
        let key = bearer(headers);
        // Whoever guesses pays by his address, and before anything is looked up.
        if !key.as_ref().is_ok_and(|key| self.service.knows(key)) {
            self.charge(RateKey::Address(address))?;
        }
        let key = key?;
        let grant = self.service.grant(&key).await?;
        self.charge(RateKey::Key(&grant.prefix))?;
        Ok((key, grant))
    }
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Whose exports a request may see and make.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Option<Arc<Grant>>);

impl Caller {
    /// Refuses what belongs to this consumer, or to none.
    pub(crate) fn require(&self, consumer: Option<&ConsumerId>) -> Result<(), Problem> {
        let permitted = self.0.as_ref().is_none_or(|grant| grant.is_for(consumer));
        if permitted { Ok(()) } else { Err(Problem::consumer_not_allowed(consumer)) }
    }

    /// The consumers whose exports alone it may see; `None`: all.
    pub(crate) fn consumers(&self) -> Option<&[ConsumerId]> {
        self.0.as_ref().and_then(|grant| grant.consumers.as_deref())
    }

    /// The public part of its key, if it has one.
    pub(crate) fn key(&self) -> Option<&Prefix> {
        self.0.as_ref().map(|grant| &grant.prefix)
    }

    /// Whether it may do what is an operator's.
    pub(crate) fn is_admin(&self) -> bool {
        self.0.as_ref().is_none_or(|grant| grant.allows(Scope::Admin))
    }

    /// Whether it may see a job.
    pub(crate) fn sees(&self, job: &Job) -> bool {
        self.0.as_ref().is_none_or(|grant| grant.is_for(job.consumer.as_ref()))
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Caller, Problem> {
        // Without it nobody has asked for a key.
        parts.extensions.get().cloned().ok_or_else(Problem::internal)
    }
}

/// Who is counted where each may have a share only: the key, or the address where there is none.
pub(crate) struct Follower {
    pub(crate) party: Subscriber,
}

impl<S: Sync> FromRequestParts<S> for Follower {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Follower, Problem> {
        let Caller(grant) = Caller::from_request_parts(parts, state).await?;
        let address = parts.extensions.get().map_or(Ipv4Addr::UNSPECIFIED.into(), |Peer(address)| *address);
        let party =
            grant.map_or(Subscriber::Address(client_network(address)), |grant| Subscriber::Key(grant.prefix.clone()));
        Ok(Follower { party })
    }
}

/// The layer that refuses whom [`Access`] doesn't let in, and who sends too much.
pub(crate) async fn check(
    State(control): State<AccessControl>,
    peer: Option<Extension<Peer>>,
    path: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    // Connections whose other end isn't known share a bucket.
    let address = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |Extension(Peer(address))| address);
    let path = path.as_ref().map_or("", MatchedPath::as_str);
    if control.access == Access::LocalCallers {
        let sender = Sender { method: request.method(), uri: request.uri(), headers: request.headers() };
        sender.check(&control.hosts, &control.origins)?;
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
        () = control.service.gone(&key) => return Err(Problem::key_invalid()),
    };
    Ok(while_good(answer, control.service, key))
}

/// What needs no key: whether it is well, what it can do, and the page that asks for the key. By a route's path, never by what a
/// client wrote.
pub(crate) fn is_open(path: &str) -> bool {
    matches!(path, "/health" | "/health/live" | "/health/ready" | "/docs" | "/openapi.json" | "/" | "/page/{name}")
        || path.starts_with("/docs/")
}

/// What is never limited: who watches a process asks while it is busy, too.
pub(crate) fn is_free(path: &str) -> bool {
    matches!(path, "/health" | "/health/live" | "/health/ready")
}

/// What a key must be for to call a route.
pub(crate) fn scope_of(method: &Method, path: &str) -> Scope {
    match (path, method) {
        ("/metrics" | "/users/{id}", _) => Scope::Admin,
        (_, &Method::GET | &Method::HEAD) => Scope::Read,
        _ => Scope::Write,
    }
}

/// The key in `Authorization: Bearer` (RFC 6750). It is nowhere else: an address is logged by everybody on the way.
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

/// An answer that takes its time, as a download or events, breaks off when its key is revoked. Somebody else looks whether it is: a
/// body is polled as long as its client reads, and what it had begun it would hold until then.
fn while_good(answer: Response, service: Service, key: PresentedKey) -> Response {
    if answer.body().size_hint().exact().is_some() {
        return answer;
    }
    let gone = CancellationToken::new();
    let tell = gone.clone();
    let watcher = AbortOnDropHandle::new(tokio::spawn(async move {
        service.gone(&key).await;
        tell.cancel();
    }));
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

    #[test]
    fn a_route_that_nobody_has_named_is_not_open() {
        assert!(is_open("/health/ready") && is_open("/openapi.json") && is_open("/docs/{*rest}"));
        assert!(is_open("/") && is_open("/page/{name}"));
        for path in
            ["", "//", "/exports", "/metrics", "/health/", "/healthy", "/docsy", "/page", "/page/", "/pages/{name}"]
        {
            assert!(!is_open(path), "{path}");
        }
        for (method, path, scope) in [
            (Method::GET, "/metrics", Scope::Admin),
            (Method::DELETE, "/users/{id}", Scope::Admin),
            (Method::HEAD, "/exports/{jobId}/download", Scope::Read),
            (Method::PUT, "/exports/watermark", Scope::Write),
            (Method::OPTIONS, "/anything", Scope::Write),
        ] {
            assert_eq!(scope_of(&method, path), scope, "{method} {path}");
        }
    }
}
