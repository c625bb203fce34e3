//! A proxy between a service and its bucket that imitates slow networks and busy stores.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::http::request::Parts;
use axum::http::{Method, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client_of_stores;
use crate::harness::until;

/// The treatment of a request by the proxy.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// Passes on the request, and its answer.
    Passed,
    /// Neither passes on nor answers the request until another rule decides. The store then does what it was asked,
    /// like one that stood still, though its client may be gone.
    Held,
    /// Answers with this status and code.
    Refused(u16, &'static str),
    /// Passes on the request, and ends the connection instead of answering.
    AnswerLost,
    /// Passes on the request with one bit of its body flipped.
    BitFlipped,
}

type Rule = Box<dyn FnMut(&Parts) -> Fate + Send>;

/// A store's other address.
pub(super) struct Between {
    pub(super) address: String,
    state: Arc<State>,
    is_open: watch::Sender<bool>,
}

struct State {
    store: String,
    client: reqwest::Client,
    rule: Mutex<Rule>,
    /// Tells those that are held of another rule.
    changed: watch::Sender<()>,
    /// Requests that were not just passed on.
    met: AtomicUsize,
}

impl Between {
    /// Passes on to the store at this address whatever it is asked.
    pub(super) async fn to(store: &str) -> Between {
        // Bound, it keeps the port while nobody listens there.
        let keeper = reusable();
        keeper.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = keeper.local_addr().unwrap().port();
        let state = Arc::new(State {
            store: store.to_owned(),
            client: client_of_stores(),
            rule: Mutex::new(Box::new(|_| Fate::Passed)),
            changed: watch::Sender::new(()),
            met: AtomicUsize::new(0),
        });
        let is_open = watch::Sender::new(true);
        tokio::spawn(listen(keeper, listener(port), Arc::clone(&state), is_open.subscribe()));
        Between { address: format!("http://127.0.0.1:{port}"), state, is_open }
    }

    /// From now on this decides of each request, those that are held included.
    pub(super) fn rule(&self, rule: impl FnMut(&Parts) -> Fate + Send + 'static) {
        *self.state.rule.lock().unwrap() = Box::new(rule);
        self.state.changed.send_replace(());
    }

    /// From the first request on for which `begins` is true, all have this fate.
    pub(super) fn from(&self, begins: fn(&Parts) -> bool, fate: Fate) {
        let mut has_begun = false;
        self.rule(move |request| {
            has_begun |= begins(request);
            if has_begun { fate } else { Fate::Passed }
        });
    }

    /// Waits until a request has another fate than to be passed on.
    pub(super) async fn meets_one(&self) {
        until("a request is met", async || self.state.met.load(Ordering::SeqCst) > 0).await;
    }

    /// Ends all connections and refuses others.
    pub(super) async fn close(&self) {
        self.is_open.send_replace(false);
        let address = self.address.trim_start_matches("http://");
        until("nobody listens", async || TcpStream::connect(address).await.is_err()).await;
    }

    /// All is as it was in the beginning.
    pub(super) fn heal(&self) {
        self.rule(|_| Fate::Passed);
        self.is_open.send_replace(true);
    }
}

fn reusable() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket
}

fn listener(port: u16) -> TcpListener {
    let socket = reusable();
    socket.bind(([127, 0, 0, 1], port).into()).unwrap();
    socket.listen(128).unwrap()
}

async fn listen(keeper: TcpSocket, first: TcpListener, state: Arc<State>, mut is_open: watch::Receiver<bool>) {
    let port = keeper.local_addr().unwrap().port();
    let mut next = Some(first);
    while is_open.wait_for(|open| *open).await.is_ok() {
        let listener = next.take().unwrap_or_else(|| listener(port));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    connections.spawn(serve(accepted.unwrap().0, Arc::clone(&state)));
                }
                _ = is_open.wait_for(|open| !*open) => break,
            }
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let answer = service_fn(|request: axum::http::Request<Incoming>| {
        let state = Arc::clone(&state);
        async move {
            let (head, body) = request.into_parts();
            // A client that goes while it sends.
            let Ok(body) = body.collect().await else { return Err(io::ErrorKind::BrokenPipe.into()) };
            // Goes on without its client.
            tokio::spawn(state.decide(head, body.to_bytes())).await.unwrap()
        }
    });
    // The error of a connection that was cut on purpose.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

impl State {
    /// An answer; an error ends the connection.
    async fn decide(self: Arc<Self>, head: Parts, body: Bytes) -> io::Result<Response<Full<Bytes>>> {
        let mut changed = self.changed.subscribe();
        loop {
            let fate = (self.rule.lock().unwrap())(&head);
            if !matches!(fate, Fate::Passed) {
                self.met.fetch_add(1, Ordering::SeqCst);
            }
            return match fate {
                Fate::Held => {
                    // Nobody is left who could say so.
                    changed.changed().await.map_err(io::Error::other)?;
                    continue;
                }
                Fate::Passed => self.pass(&head, body).await,
                Fate::BitFlipped => {
                    let mut body = body.to_vec();
                    let middle = body.len() / 2;
                    body[middle] ^= 1;
                    self.pass(&head, body.into()).await
                }
                Fate::AnswerLost => {
                    self.pass(&head, body).await?;
                    Err(io::ErrorKind::ConnectionReset.into())
                }
                Fate::Refused(status, code) => {
                    let body = format!("<Error><Code>{code}</Code><Message>Not now.</Message></Error>");
                    let body = if head.method == Method::HEAD { String::new() } else { body };
                    Ok(Response::builder().status(status).body(body.into()).unwrap())
                }
            };
        }
    }

    async fn pass(&self, head: &Parts, body: Bytes) -> io::Result<Response<Full<Bytes>>> {
        let url = format!("{}{}", self.store, head.uri);
        // The host's name too, which is signed.
        let call = self.client.request(head.method.clone(), url).headers(head.headers.clone()).body(body);
        let answer = call.send().await.map_err(io::Error::other)?;
        let mut response = Response::builder().status(answer.status());
        for (name, value) in answer.headers().iter().filter(|(name, _)| *name != "transfer-encoding") {
            response = response.header(name, value);
        }
        let body =
            if head.method == Method::HEAD { Bytes::new() } else { answer.bytes().await.map_err(io::Error::other)? };
        Ok(response.body(body.into()).unwrap())
    }
}

pub(super) fn is_part(request: &Parts) -> bool {
    let query = request.uri.query().unwrap_or_default();
    let is_azures = query.split('&').any(|pair| pair == "comp=block");
    request.method == Method::PUT && (query.contains("partNumber=") || is_azures)
}

pub(super) fn is_marker(request: &Parts) -> bool {
    // The client of GCS escapes all but letters and digits.
    let is_lanes = [".lane-", "%2Elane%2D"].iter().any(|name| request.uri.path().contains(name));
    request.method == Method::PUT && is_lanes
}

pub(super) fn is_completion(request: &Parts) -> bool {
    let query = request.uri.query().unwrap_or_default();
    let is_azures = query.contains("comp=blocklist");
    (request.method == Method::POST && query.contains("uploadId=")) || (request.method == Method::PUT && is_azures)
}

pub(super) fn is_deletion(request: &Parts) -> bool {
    let query = request.uri.query().unwrap_or_default();
    let is_azures = request.method == Method::POST && query.contains("comp=batch");
    is_azures || (request.method == Method::DELETE && !query.contains("uploadId="))
}

pub(super) fn is_any(_: &Parts) -> bool {
    true
}
