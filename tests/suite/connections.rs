//! Clients that take a connection and hang: whom they may hold up, and whom never.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Database, HANG_TIMEOUT, Service, Start, client_builder, eventually, in_status, refusal};
use crate::keys::{bearer, call_as};

/// More than the service has places for those who have sent no request, or only one that needs no key.
const MANY: usize = 1_005;
/// A write that makes no progress is given up after this time, which is 30 seconds but for this test.
const STALLED: Duration = Duration::from_secs(6);

/// Both ends of a connection are descriptors, and this process has those of other tests too.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

fn address(service: &Service) -> SocketAddr {
    service.address.trim_start_matches("http://").parse().unwrap()
}

/// A connection from a loopback address, with little room for what isn't read, on which something was sent.
async fn connected(service: &Service, from: [u8; 4], sent: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    // As over a network: with loopback's own the service's system would take megabytes.
    socket2::SockRef::from(&socket).set_tcp_mss(1_400).unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(address(service)).await.unwrap();
    // The service may have closed it already, to make place.
    let _ = stream.write_all(sent.as_bytes()).await;
    stream
}

async fn many(service: &Service, number: usize, sent: &str) -> Vec<TcpStream> {
    join_all((0..number).map(|_| connected(service, [127, 0, 0, 1], sent))).await
}

/// Connections on which something was sent, in such a number that `looked` finds what they do. On a busy machine the database has no
/// connection for so many at once: some are refused, which hold no place, and more come after them.
async fn enough<T>(
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

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn with_key(request: &str, key: &str) -> String {
    request.replace("\r\n\r\n", &format!("\r\nAuthorization: {key}\r\n\r\n"))
}

fn client_of(key: &str) -> reqwest::Client {
    let headers = HeaderMap::from_iter([(AUTHORIZATION, key.parse().unwrap())]);
    client_builder().default_headers(headers).build().unwrap()
}

/// The status of a request's answer on a connection of its own, and all of it.
async fn asked(service: &Service, from: [u8; 4], path: &str) -> (u16, String) {
    let answered = async {
        let mut stream =
            connected(service, from, &get(path).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    let answer = tokio::time::timeout(HANG_TIMEOUT, answered).await.expect("an answer").unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

async fn is_alive(service: &Service, while_they: &str) {
    for _ in 0..10 {
        let (status, _) = asked(service, [127, 0, 0, 1], "/health/live").await;
        assert_eq!(status, 200, "{while_they}");
    }
}

/// A completed export of more than the sockets take while nobody reads, and what asks for it.
async fn large_file(database: &Database, service: &Service) -> (String, u64) {
    database
        .run(
            "insert into users (name, email, created_at, updated_at)
             select repeat('x', 250), n || repeat('y', 200), now(), now() from generate_series(1, 20000) n",
        )
        .await;
    let (job, _) = service.export("full", "a").await;
    (get(&format!("/exports/{}/download", job["jobId"].as_str().unwrap())), job["bytesWritten"].as_u64().unwrap())
}

#[tokio::test]
async fn health_is_told_however_many_sockets_hang() {
    allow_descriptors();
    let database = Database::new().await;
    let service = Start::on(&database).service().await;
    let (download, _) = large_file(&database, &service).await;
    let unread = get("/openapi.json").repeat(20);
    let slow_body =
        "POST /exports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{";
    for (what, sent) in [
        ("don't read what needs no key", &*unread),
        ("send nothing", ""),
        ("send half a head", "GET /health HTTP/1.1\r\nHost: local"),
        ("send half a body", slow_body),
        ("don't read a file", &download),
        ("are kept alive", &get("/health/live")),
    ] {
        let hanging = many(&service, MANY, sent).await;
        is_alive(&service, what).await;
        // Others come on top of them.
        let more = many(&service, MANY, sent).await;
        is_alive(&service, what).await;
        drop((hanging, more));
    }
    eventually("all places are free again", async || {
        (asked(&service, [127, 0, 0, 1], "/exports?limit=1").await.0 == 200).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn one_address_leaves_places_to_others() {
    allow_descriptors();
    let database = Database::new().await;
    let service = Start::on(&database).service().await;
    let (download, _) = large_file(&database, &service).await;
    let path = "/exports?limit=1";
    let (hanging, head) = enough(&service, MANY, &download, async || {
        let (status, answer) = asked(&service, [127, 0, 0, 1], path).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let problem: Value = serde_json::from_str(body).unwrap();
        (status == 503 && problem["code"] == "too_many_connections").then(|| head.to_owned())
    })
    .await;
    assert!(head.contains("retry-after: "), "{head}");
    eventually("another address has places", async || {
        (asked(&service, [127, 0, 0, 2], path).await.0 == 200).then_some(())
    })
    .await;
    // What needs no key is no place of theirs.
    assert_eq!(asked(&service, [127, 0, 0, 1], "/openapi.json").await.0, 200);
    drop(hanging);
    eventually("they are free again", async || (asked(&service, [127, 0, 0, 1], path).await.0 == 200).then_some(()))
        .await;
    service.stop().await;
}

#[tokio::test]
async fn one_key_leaves_places_to_others_of_its_address() {
    allow_descriptors();
    let database = Database::new().await;
    let (greedy, other) = (bearer(&database, "greedy", &[], &[]).await, bearer(&database, "other", &[], &[]).await);
    let mut service = Start::on(&database).with("AUTH", "keys").service().await;
    service.client = client_of(&other);
    let (download, _) = large_file(&database, &service).await;
    let path = "/exports?limit=1";
    let (hanging, ()) = enough(&service, 510, &with_key(&download, &greedy), async || {
        let answer = call_as(&service, &greedy, "GET", path).await;
        let is_taken = answer.status() != 200 && refusal(answer).await == (503, "too_many_connections".to_owned());
        is_taken.then_some(())
    })
    .await;
    eventually("another key has places, from the same address", async || {
        (service.call("GET", path, &[]).await.status() == 200).then_some(())
    })
    .await;
    drop(hanging);
    eventually("they are free again", async || {
        (call_as(&service, &greedy, "GET", path).await.status() == 200).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn downloads_that_stop_reading_keep_nobodys_key_from_being_looked_up() {
    let database = Database::new().await;
    let (reader, other) = (bearer(&database, "reader", &[], &[]).await, bearer(&database, "other", &[], &[]).await);
    let forgetful = "keys.believed=time:200,keys.looked_at=time:200";
    let start = Start::on(&database).with("AUTH", "keys").with("FAILPOINTS", forgetful);
    let mut service = start.service().await;
    service.client = client_of(&other);
    let (download, _) = large_file(&database, &service).await;
    let mut downloads = many(&service, 16, &with_key(&download, &reader)).await;
    for round in 0..6 {
        // By then nobody's key is known any more, and each download's is looked at again.
        tokio::time::sleep(Duration::from_millis(300)).await;
        join_all(downloads.iter_mut().map(async |stream| {
            let mut part = vec![0; 200 * 1024];
            let read = tokio::time::timeout(HANG_TIMEOUT, stream.read_exact(&mut part)).await;
            read.expect("what is read comes").unwrap();
        }))
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        // A look-up that waits for theirs is given up, which is no 200.
        assert_eq!(service.call("GET", "/exports?limit=1", &[]).await.status(), 200, "round {round}");
    }
    service.stop().await;
}

#[tokio::test]
async fn an_unread_download_takes_little_memory() {
    allow_descriptors();
    const DOWNLOADS: usize = 400;
    let database = Database::new().await;
    let service = Start::on(&database).service().await;
    let (download, _) = large_file(&database, &service).await;
    let before = in_status(&service, "VmRSS:");
    let mut downloads = many(&service, DOWNLOADS, &download).await;
    // Each is under way, and its buffers are full.
    for stream in &mut downloads {
        stream.read_exact(&mut [0; 8 * 1024]).await.unwrap();
    }
    let each = in_status(&service, "VmRSS:").saturating_sub(before) / DOWNLOADS as u64;
    println!("{each} KiB for each unread download");
    assert!(each < 400, "{each} KiB for each of them");
    service.stop().await;
}

#[tokio::test]
async fn a_download_that_is_not_read_is_cut_off_and_a_slow_one_is_not() {
    let database = Database::new().await;
    let stall = format!("http.stall=time:{}", STALLED.as_millis());
    let service = Start::on(&database).with("FAILPOINTS", stall).service().await;
    let (download, length) = large_file(&database, &service).await;
    let download = &*download;
    let open = async || connected(&service, [127, 0, 0, 1], download).await;
    // How many bytes come before the connection ends.
    let rest = async |mut stream: TcpStream| {
        let (mut bytes, mut buffer) = (0, vec![0; 64 * 1024]);
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break bytes,
                Ok(_) if bytes > length => break bytes,
                Ok(read) => bytes += read as u64,
            }
        }
    };
    let unread = async {
        let stream = open().await;
        tokio::time::sleep(STALLED + Duration::from_secs(2)).await;
        rest(stream).await
    };
    let paused = async {
        let stream = open().await;
        tokio::time::sleep(STALLED / 3).await;
        rest(stream).await
    };
    let slow = async {
        // With as much room as sockets have: the service's system hears of what is read only now and then.
        let mut stream = TcpStream::connect(address(&service)).await.unwrap();
        stream.write_all(download.as_bytes()).await.unwrap();
        let (begun, mut bytes) = (Instant::now(), 0);
        while begun.elapsed() < STALLED + Duration::from_secs(3) {
            bytes += stream.read(&mut [0; 4096]).await.unwrap() as u64;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bytes + rest(stream).await
    };
    let (unread, paused, slow) = tokio::join!(unread, paused, slow);
    assert!(unread < length, "{unread} bytes of {length}");
    assert!(paused > length && slow > length, "{paused}, {slow} of {length}");
    service.stop().await;
}
