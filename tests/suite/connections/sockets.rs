//! Sockets that hang, in whatever number.

use std::net::SocketAddr;
use std::sync::Mutex;

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Database, Service, eventually};

/// Both ends of a connection are descriptors, and this process has those of other tests too.
pub(crate) fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

pub(crate) fn address(service: &Service) -> SocketAddr {
    service.address.trim_start_matches("http://").parse().unwrap()
}

/// A connection from a loopback address, with little room for what isn't read, on which something was sent.
pub(crate) async fn connected(service: &Service, from: [u8; 4], sent: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    // Uses the segment size of a network: with that of loopback, the service's system would take megabytes.
    socket2::SockRef::from(&socket).set_tcp_mss(1_400).unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(address(service)).await.unwrap();
    // The service may have closed it already, to make place.
    let _ = stream.write_all(sent.as_bytes()).await;
    stream
}

pub(crate) async fn many(service: &Service, number: usize, sent: &str) -> Vec<TcpStream> {
    join_all((0..number).map(|_| connected(service, [127, 0, 0, 1], sent))).await
}

/// Connections on which something was sent, in such a number that `looked` finds what they do. On a busy machine the
/// database has no connection for so many at once: some are refused, which hold no place, and more come after them.
pub(crate) async fn enough<T>(
    service: &Service,
    number: usize,
    sent: &str,
    looked: impl AsyncFn() -> Option<T>,
) -> (Vec<TcpStream>, T) {
    let hanging = Mutex::new(many(service, number, sent).await);
    let found = eventually("the places are taken", async || {
        let found = looked().await;
        if found.is_none() {
            let more = many(service, 20, sent).await;
            hanging.lock().unwrap().extend(more);
        }
        found
    })
    .await;
    (hanging.into_inner().unwrap(), found)
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// A completed export of more than the sockets take while nobody reads, and what asks for it.
pub(crate) async fn large_file(database: &Database, service: &Service) -> (String, u64) {
    let changes = "insert into users (name, email, created_at, updated_at)
                   select repeat('x', 250), n || repeat('y', 200), now(), now() from generate_series(1, 20000) n";
    database.run(changes).await;
    let (job, _) = service.export("full", "a").await;
    (get(&format!("/exports/{}/download", job["jobId"].as_str().unwrap())), job["bytesWritten"].as_u64().unwrap())
}
