//! Clients that take hundreds of connections, or a thousand, and hang.

#[path = "../suite/connections/sockets.rs"]
mod sockets;

use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::connections::sockets::{allow_descriptors, connected, enough, get, large_file, many};
use crate::harness::{HANG_TIMEOUT, Service, serving_users, until};

/// More than one address may have.
const MANY: usize = 1_005;

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
        let (status, _) = asked(service, [127, 0, 0, 2], "/health/live").await;
        assert_eq!(status, 200, "{while_they}");
    }
}

#[tokio::test]
async fn health_is_told_however_many_sockets_hang() {
    allow_descriptors();
    let (database, service) = serving_users(0).await;
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
    until("all places are free again", async || asked(&service, [127, 0, 0, 1], "/exports?limit=1").await.0 == 200)
        .await;
    let refused = service.events("connection_refused");
    assert!(refused.iter().all(|line| line["address"] == "127.0.0.1") && !refused.is_empty(), "{refused:?}");
}

#[tokio::test]
async fn one_address_leaves_places_to_others() {
    allow_descriptors();
    let (database, service) = serving_users(0).await;
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
    until("another address has places", async || asked(&service, [127, 0, 0, 2], path).await.0 == 200).await;
    drop(hanging);
    until("they are free again", async || asked(&service, [127, 0, 0, 1], path).await.0 == 200).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_unread_download_takes_little_memory() {
    allow_descriptors();
    const DOWNLOADS: usize = 300;
    let (database, service) = serving_users(0).await;
    let (download, _) = large_file(&database, &service).await;
    let before = crate::memory::in_status(service.pid(), "VmRSS:");
    let mut downloads = many(&service, DOWNLOADS, &download).await;
    // Each is under way, and its buffers are full.
    for stream in &mut downloads {
        stream.read_exact(&mut [0; 8 * 1024]).await.unwrap();
    }
    let each = crate::memory::in_status(service.pid(), "VmRSS:").saturating_sub(before) / DOWNLOADS as u64;
    println!("{each} KiB for each unread download");
    assert!(each < 400, "{each} KiB for each of them");
}
