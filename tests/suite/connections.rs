//! Clients that take a connection and hang: whom they may hold up, and whom never.

mod sockets;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::connections::sockets::{address, allow_descriptors, connected, enough, large_file, many};
use crate::harness::{Database, HANG_TIMEOUT, Start, client_builder, refusal, until};
use crate::keys::{bearer, call_as};

/// A write that makes no progress is given up after this time, which is 30 seconds but for this test.
const STALLED: Duration = Duration::from_secs(6);

fn with_key(request: &str, key: &str) -> String {
    request.replace("\r\n\r\n", &format!("\r\nAuthorization: {key}\r\n\r\n"))
}

fn client_of(key: &str) -> reqwest::Client {
    let headers = HeaderMap::from_iter([(AUTHORIZATION, key.parse().unwrap())]);
    client_builder().default_headers(headers).build().unwrap()
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
    let (hanging, ()) = enough(&service, 340, &with_key(&download, &greedy), async || {
        let answer = call_as(&service, &greedy, "GET", path).await;
        let is_taken = answer.status() != 200 && refusal(answer).await == (503, "too_many_connections".to_owned());
        is_taken.then_some(())
    })
    .await;
    until("another key has places, from the same address", async || {
        service.call("GET", path, &[]).await.status() == 200
    })
    .await;
    drop(hanging);
    until("they are free again", async || call_as(&service, &greedy, "GET", path).await.status() == 200).await;
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
}

#[tokio::test]
async fn a_download_that_is_not_read_is_cut_off_and_a_slow_one_is_not() {
    let database = Database::new().await;
    let stall = format!("http.stall=time:{}", STALLED.as_millis());
    let service = Start::on(&database).with("FAILPOINTS", stall).service().await;
    let (download, length) = large_file(&database, &service).await;
    let download = &*download;
    let open = async || connected(&service, [127, 0, 0, 1], download).await;
    // Counts the bytes that arrive before the connection ends.
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
}
