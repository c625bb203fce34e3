//! The network between a replica and Postgres. It may be slow, swallow everything, silence one reader, break, or lose
//! the answer to a COMMIT. The network between a replica and its bucket may also refuse to complete uploads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::plan::LinkFault;
use crate::replica::LEASE;

/// Milliseconds that each piece takes one way without a fault. So attempts last long enough to be hit.
const LATENCY: u64 = 6;
/// Bytes per millisecond from Postgres, for the same reason.
const RATE: usize = 600;

#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) port: u16,
    state: Arc<State>,
}

struct State {
    server: SocketAddr,
    /// True while nothing gets through. Data arrives later, as if TCP had sent it again.
    hole: watch::Sender<bool>,
    /// The current epoch. Connections of an earlier epoch are reset.
    epoch: watch::Sender<u64>,
    latency: AtomicU64,
    lost_answers: Mishap,
    silent_readers: Mishap,
    /// True while the proxy refuses requests that would complete an upload.
    refuses_completions: AtomicBool,
}

/// Time until the server hears that the client gave up a silenced connection, as if its host had been restarted.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);

impl Link {
    pub(crate) async fn to(server: u16) -> Result<Link> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let state = Arc::new(State {
            server: ([127, 0, 0, 1], server).into(),
            hole: watch::Sender::new(false),
            epoch: watch::Sender::new(0),
            latency: AtomicU64::new(LATENCY),
            lost_answers: Mishap::default(),
            silent_readers: Mishap::default(),
            refuses_completions: AtomicBool::new(false),
        });
        let link = Link { port: listener.local_addr()?.port(), state: Arc::clone(&state) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connect(Arc::clone(&state), client));
            }
        });
        Ok(link)
    }

    /// Makes the link suffer a fault. Returns when the fault is over.
    pub(crate) async fn suffer(&self, fault: LinkFault) {
        let state = &self.state;
        match fault {
            LinkFault::Hole(time) => {
                state.hole.send_replace(true);
                tokio::time::sleep(time).await;
                state.hole.send_replace(false);
            }
            LinkFault::Slow(by) => {
                state.latency.store(LATENCY + by.as_millis() as u64, Ordering::Relaxed);
                tokio::time::sleep(2 * LEASE).await;
                state.latency.store(LATENCY, Ordering::Relaxed);
            }
            LinkFault::Reset => state.epoch.send_modify(|epoch| *epoch += 1),
            LinkFault::Refuse(time) => {
                state.refuses_completions.store(true, Ordering::Relaxed);
                tokio::time::sleep(time).await;
                state.refuses_completions.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Returns the mishap that loses the answer to a COMMIT, and the connection with it.
    pub(crate) fn lost_answers(&self) -> &Mishap {
        &self.state.lost_answers
    }

    /// Returns the mishap that silences a connection which imports a snapshot, from its next message on, for good. The
    /// replica's other connections live.
    pub(crate) fn silent_readers(&self) -> &Mishap {
        &self.state.silent_readers
    }

    /// Cancels all mishaps that are still due.
    pub(crate) fn heal(&self) {
        for mishap in [self.lost_answers(), self.silent_readers()] {
            mishap.due.store(0, Ordering::Relaxed);
        }
    }
}

/// A fault of the next connection that meets a condition, if the nemesis has requested one.
#[derive(Default)]
pub(crate) struct Mishap {
    due: AtomicU32,
    happened: AtomicUsize,
}

impl Mishap {
    pub(crate) fn happened(&self) -> usize {
        self.happened.load(Ordering::Relaxed)
    }

    /// Makes the mishap happen once, and waits for it for `patience` at most.
    pub(crate) async fn bring_about(&self, patience: Duration) {
        let (before, asked) = (self.happened(), Instant::now());
        self.due.fetch_add(1, Ordering::Relaxed);
        while self.happened() == before && asked.elapsed() < patience {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn happens(&self) -> bool {
        let happens = self.due.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |due| due.checked_sub(1)).is_ok();
        self.happened.fetch_add(usize::from(happens), Ordering::Relaxed);
        happens
    }
}

enum End {
    Closed,
    Reset,
    /// The proxy answers instead of the store.
    Refused,
}

async fn connect(state: Arc<State>, mut client: TcpStream) {
    // If the server is down, the client's connection is closed, as by a host whose Postgres is down.
    let Ok(mut server) = TcpStream::connect(state.server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let mut epoch = state.epoch.subscribe();
    let ours = *epoch.borrow_and_update();
    let deaf = AtomicBool::new(false);
    let silent = AtomicBool::new(false);
    let end = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let up = async {
            let mut buffer = vec![0; 16 * 1024];
            let mut imports = false;
            while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
                if imports && state.silent_readers.happens() {
                    silent.store(true, Ordering::SeqCst);
                }
                if silent.load(Ordering::SeqCst) {
                    continue;
                }
                imports = has(&buffer[..n], b"set transaction snapshot");
                state.pass(n, usize::MAX).await;
                if state.refuses_completions.load(Ordering::Relaxed) && is_completion(&buffer[..n]) {
                    return End::Refused;
                }
                if is_commit(&buffer[..n]) && state.lost_answers.happens() {
                    deaf.store(true, Ordering::SeqCst);
                }
                if to_server.write_all(&buffer[..n]).await.is_err() {
                    break;
                }
            }
            if silent.load(Ordering::SeqCst) {
                tokio::time::sleep(FORGOTTEN_AFTER).await;
            }
            End::Closed
        };
        let down = async {
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                if deaf.load(Ordering::SeqCst) {
                    return End::Reset;
                }
                if silent.load(Ordering::SeqCst) {
                    continue;
                }
                state.pass(n, RATE).await;
                if to_client.write_all(&buffer[..n]).await.is_err() {
                    break;
                }
            }
            // The replica doesn't hear that the server has ended the session, either.
            if silent.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            End::Closed
        };
        tokio::select! {
            end = up => end,
            end = down => end,
            _ = epoch.wait_for(|now| *now != ours) => End::Reset,
        }
    };
    match end {
        End::Closed => {}
        End::Reset => drop(client.set_zero_linger()),
        End::Refused => refuse(client).await,
    }
}

/// Answers like a proxy that lets nobody through. The client closes the connection after reading the answer.
async fn refuse(mut client: TcpStream) {
    let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    if client.write_all(answer).await.is_ok() {
        let mut rest = [0; 1024];
        let closes = async { while let Ok(1..) = client.read(&mut rest).await {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), closes).await;
    }
}

impl State {
    async fn pass(&self, bytes: usize, rate: usize) {
        let latency = self.latency.load(Ordering::Relaxed) + (bytes / rate) as u64;
        tokio::time::sleep(Duration::from_millis(latency)).await;
        let mut hole = self.hole.subscribe();
        // The sender lives as long as `self`.
        let _ = hole.wait_for(|on| !on).await;
    }
}

fn has(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|part| part == text)
}

/// Returns true if this is a simple query that ends with `commit`. The transaction is unknown here: it may submit a
/// job, end a reading, or complete an export.
fn is_commit(bytes: &[u8]) -> bool {
    bytes.len() > 7 && bytes[bytes.len() - 7..].eq_ignore_ascii_case(b"commit\0")
}

/// Returns true if this is the head of a request to S3 or Azure that makes an object of uploaded parts.
fn is_completion(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    (line.starts_with(b"POST ") && has(line, b"uploadId="))
        || (line.starts_with(b"PUT ") && has(line, b"comp=blocklist"))
}
