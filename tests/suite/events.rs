//! `GET /exports/{jobId}/events`: the stream of a job, read by a small client.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::catalog::{Catalog, export, submit};
use crate::harness::{Database, Service, Start, eventually, serving_users};

/// The events that a client has read so far.
pub(crate) struct Stream {
    response: reqwest::Response,
    text: String,
}

impl Stream {
    pub(crate) async fn of(service: &Service, id: &str) -> Stream {
        let response = service.call("GET", &format!("/exports/{id}/events"), &[]).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["Content-Type"], "text/event-stream");
        Stream { response, text: String::new() }
    }

    /// Returns the next event's name and data, or `None` at the end of the stream.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    block.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
                };
                let event = field("event:").map(|name| (name, serde_json::from_str(&field("data:").unwrap()).unwrap()));
                self.text = rest.to_owned();
                match event {
                    Some(event) => return Some(event),
                    // A comment, which keeps proxies from closing a silent connection.
                    None => continue,
                }
            }
            let patience = Duration::from_secs(30);
            let piece = tokio::time::timeout(patience, self.response.chunk()).await.expect("an event or the end");
            self.text.push_str(std::str::from_utf8(&piece.unwrap()?).unwrap());
        }
    }

    pub(crate) async fn rest(mut self) -> Vec<(String, Value)> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

#[tokio::test]
async fn a_job_is_followed_to_its_end() {
    let database = Database::with_users(20_000).await;
    let service =
        Start::on(&database).with("FAILPOINTS", "sink.write=hold@2").with("LEASE_SECONDS", "1").service().await;
    let (held, id) = service.held_export(&database, "full", "one").await;
    let mut stream = Stream::of(&service, &id).await;
    let (name, job) = stream.next().await.unwrap();
    assert_eq!((name.as_str(), &job["jobId"], &job["status"]), ("job", &Value::from(id.clone()), &"processing".into()));
    held.rollback().await.unwrap();
    // A held job reports its progress again and again.
    let mut before = vec![stream.next().await.unwrap()];
    service.release("sink.write").await;
    let rest = stream.rest().await;
    let (last, more) = rest.split_last().unwrap();
    before.extend_from_slice(more);
    assert_eq!(last.0, "completed");
    assert_eq!((&last.1["rowsExported"], &last.1["progress"]), (&18_000.into(), &100.into()));
    assert!(before.iter().all(|(name, _)| name == "progress"), "{before:?}");
    let progress = before.iter().chain([last]).map(|(_, job)| job["progress"].as_u64().unwrap());
    let progress: Vec<u64> = progress.collect();
    assert!(progress.is_sorted(), "{progress:?}");

    // The stream of an ended job reports the end at once, and ends.
    let names: Vec<String> = Stream::of(&service, &id).await.rest().await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["job", "completed"]);
    service.refuses("GET", "/exports/no-such-job/events", &[], 404, "not_found").await;
}

#[tokio::test]
async fn cancelled_and_failed_jobs_end_their_streams() {
    let (database, service) = serving_users(5).await;
    let held = database.hold_exports().await;
    let id = service.submit("full", "one").await;
    let stream = Stream::of(&service, &id).await;
    service.call("POST", &format!("/exports/{id}/cancel"), &[]).await;
    assert_eq!(stream.rest().await.last().unwrap().0, "cancelled");
    held.rollback().await.unwrap();

    service.export("full", "two").await;
    database.run("truncate users").await;
    let id = service.submit("delta", "two").await;
    let events = Stream::of(&service, &id).await.rest().await;
    let (name, job) = events.last().unwrap();
    assert_eq!((name.as_str(), job["error"]["code"].as_str()), ("failed", Some("full_export_needed")), "{events:?}");
}

#[tokio::test]
async fn an_open_stream_does_not_delay_a_stop() {
    let (database, mut service) = serving_users(0).await;
    let _held = database.hold_exports().await;
    let id = service.submit("full", "one").await;
    service.becomes(&id, "processing").await;
    let stream = Stream::of(&service, &id).await;
    let mut waiting = TcpStream::connect(service.address.trim_start_matches("http://")).await.unwrap();
    let request = format!("GET /exports/{id}?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    waiting.write_all(request.as_bytes()).await.unwrap();
    // Answered after that one was read.
    service.call("GET", "/health", &[]).await;
    service.signal(Signal::SIGTERM);
    let _ = stream.rest().await;
    assert_eq!(service.exit().await, Some(0));
}

/// The third write is the second one of the delta.
#[tokio::test]
async fn a_delta_says_what_it_does_and_how_far_it_is() {
    let database = Database::new_with(
        "create table items (id int primary key, filler text not null); insert into items values (0, '')",
    )
    .await;
    let catalog = Catalog::of("[[dataset]]\nname = \"items\"\ntable = \"items\"\n");
    catalog.track(&database, "items").await;
    let service = catalog.start(&database).with("FAILPOINTS", "sink.write=hold@3").service().await;
    export(&service, "full", "items", "one").await;
    database.run("insert into items select n, repeat('x', 400) from generate_series(1, 20000) n").await;

    let id = submit(&service, "/exports/delta", Some("one"), json!({"dataset": "items"})).await;
    service.reaches("sink.write").await;
    let job = eventually("the rows are counted", async || {
        let job = service.job(&id).await;
        (!job["rowsExpected"].is_null()).then_some(job)
    })
    .await;
    let (rows, percent) = (job["rowsExported"].as_u64().unwrap(), job["progress"].as_u64().unwrap());
    assert_eq!((&job["phase"], &job["rowsExpected"]), (&json!("writing"), &json!(20_000)), "{job}");
    assert!(rows > 0 && rows < 20_000 && percent == rows * 100 / 20_000, "{job}");
    service.release("sink.write").await;
    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["progress"]), (&json!("completed"), &json!(100)), "{job}");
    assert_eq!((&job["rowsExported"], &job["phase"]), (&json!(20_000), &Value::Null), "{job}");
    assert_eq!(job["rowsExpected"], Value::Null, "{job}");
}
