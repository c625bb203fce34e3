//! Limits the number of connections and of open requests, so that clients that hang cannot block other clients.
//!
//! A connection is counted for its address when it is accepted. A request that passed access control is counted for its
//! key, or for its address if it has none, until its response is written. Both follow the rule of [`Shares`].

use std::io::{Read, Write};
use std::net::IpAddr;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use tokio::net::TcpStream;

use crate::http::access::{RequestSubscriber, is_open};
use crate::http::code::Code;
use crate::http::problem::Problem;
use crate::http::rate::client_network;
use crate::service::{Share, Shares, Subscriber};

/// Maximum number of open requests. A higher number has no benefit: all of them share a few connections to Postgres.
const MAX_REQUESTS: usize = 1_000;
/// File descriptors reserved for other purposes: connections to Postgres and files being written.
const OTHER_DESCRIPTORS: usize = 250;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    connections: usize,
    requests: usize,
}

impl ConnectionLimits {
    /// Returns the limits of a process with at most `max` file descriptors: 3,000 connections and 1,000 open requests,
    /// or fewer if there are not enough descriptors.
    ///
    /// One address may have a third of the connections. That is as many as there may be open requests, because all
    /// clients behind a proxy share its address.
    pub fn for_descriptors(max: u64) -> ConnectionLimits {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        // A request may need a file descriptor besides the socket of its connection.
        let requests = (max.saturating_sub(OTHER_DESCRIPTORS) / 4).clamp(16, MAX_REQUESTS);
        ConnectionLimits { connections: 3 * requests, requests }
    }
}

#[derive(Debug)]
pub(crate) struct Connections {
    per_address: Arc<Shares<IpAddr>>,
    requests: Arc<Shares<Subscriber>>,
    refusal: Vec<u8>,
}

impl Connections {
    pub(crate) async fn new(limits: ConnectionLimits) -> Connections {
        let (per_address, requests) = (Shares::new(limits.connections), Shares::new(limits.requests));
        Connections { per_address, requests, refusal: refusal().await }
    }

    /// Counts a new connection for its address, until the share is dropped. Returns `None` if there are too many.
    pub(crate) fn admit(&self, address: IpAddr) -> Option<Share<IpAddr>> {
        self.per_address.take(client_network(address))
    }

    /// Closes a connection that was not admitted. Sends the response first, as far as the socket takes it at once.
    pub(crate) fn refuse(&self, stream: TcpStream) {
        let Ok(mut stream) = stream.into_std() else { return };
        // With unread bytes, the close would discard the response at the other end.
        let _ = stream.read(&mut [0; 8 * 1024]);
        let _ = stream.write_all(&self.refusal);
    }

    pub(crate) fn requests(&self) -> RequestShares {
        RequestShares(Arc::clone(&self.requests))
    }
}

/// The open requests of all clients, as each request has them in its extensions.
#[derive(Clone, Debug)]
pub(crate) struct RequestShares(Arc<Shares<Subscriber>>);

fn problem() -> Problem {
    let detail = "too many connections or open requests: of this key, of this address or in total";
    Problem::new(Code::TooManyConnections, detail)
}

async fn refusal() -> Vec<u8> {
    let (head, body) = problem().into_response().into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let mut text = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
    for (name, value) in &head.headers {
        text.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    text.extend(format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()).as_bytes());
    text.extend(body);
    text
}

/// Layer that counts each request that passed access control, until its response is written.
pub(crate) async fn count_requests(
    shares: Option<Extension<RequestShares>>,
    RequestSubscriber(client): RequestSubscriber,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let Some(Extension(RequestShares(shares))) = shares else { return Ok(next.run(request).await) };
    if is_open(path.as_ref().map_or("", MatchedPath::as_str)) {
        return Ok(next.run(request).await);
    }
    let share = shares.take(client).ok_or_else(problem)?;
    let response = next.run(request).await;
    // The closure keeps the share as long as the body exists.
    let held = move |error| {
        let _ = &share;
        error
    };
    Ok(response.map(|body| Body::new(body.map_err(held))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_fit_into_the_file_descriptors() {
        let limits = |descriptors| {
            let ConnectionLimits { connections, requests } = ConnectionLimits::for_descriptors(descriptors);
            (connections, requests)
        };
        assert_eq!(limits(u64::MAX), (3_000, 1_000));
        assert_eq!(limits(1_024), (579, 193));
        assert_eq!(limits(0), (48, 16));
    }
}
