//! Webhooks: each end of a job is posted, signed, until the receiver accepts it.

#[cfg(test)]
mod command;
#[cfg(test)]
mod gone;
#[cfg(test)]
mod several_datasets;
#[cfg(test)]
mod stops;
#[cfg(test)]
mod waits;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::{Value, json};

use crate::catalog::Catalog;
use crate::harness::{Database, Service, Start, eventually};

const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3";
const OLD_SECRET: &str = "whsec_b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xk";

#[derive(Clone)]
enum Answer {
    Status(u16),
    Redirect(String),
    /// 200 after this delay in milliseconds.
    After(u64),
}

#[derive(Clone)]
struct Heard {
    id: String,
    signed: bool,
    event: Value,
}

/// A receiver that gives the prepared answers in order, and then 200.
#[derive(Clone, Default)]
struct Receiver {
    port: u16,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Receiver {
    async fn start() -> Receiver {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Receiver { port: listener.local_addr().unwrap().port(), ..Receiver::default() };
        let routes = Router::new().fallback(post).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        receiver
    }

    fn answers(&self, answers: impl IntoIterator<Item = Answer>) {
        self.answers.lock().unwrap().extend(answers);
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// Waits until the receiver got this number of posts, and returns them.
    async fn hears(&self, posts: usize) -> Vec<Heard> {
        eventually("a post", || async { Some(self.heard()).filter(|heard| heard.len() >= posts) }).await
    }

    /// Returns a block of the operator's file with the receiver's address.
    fn block(&self, name: &str, more: &str) -> String {
        let Receiver { port, .. } = self;
        format!(
            "[[webhook]]\nname = \"{name}\"\nurl = \"http://localhost:{port}/hooks/token\"\nsecret_env = \"HOOK_SECRET\"\n\
             allow_http = true\nallow_private = true\n{more}\n"
        )
    }
}

async fn post(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> Response {
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    let text =
        format!("{}.{}.{}", header("webhook-id"), header("webhook-timestamp"), std::str::from_utf8(&body).unwrap());
    let signatures = headers.get("webhook-signature").map(|value| value.to_str().unwrap()).unwrap_or_default();
    let is_by = |secret: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap());
        let tag = format!("v1,{}", STANDARD.encode(hmac::sign(&key, text.as_bytes())));
        signatures.split(' ').any(|signature| signature == tag)
    };
    let signed = is_by(SECRET) && is_by(OLD_SECRET) && header("content-type") == "application/cloudevents+json";
    let event = serde_json::from_slice(&body).unwrap();
    receiver.heard.lock().unwrap().push(Heard { id: header("webhook-id"), signed, event });
    let answer = receiver.answers.lock().unwrap().pop_front();
    match answer {
        None => StatusCode::OK.into_response(),
        Some(Answer::Status(status)) => {
            (StatusCode::from_u16(status).unwrap(), "a long word".repeat(10_000)).into_response()
        }
        Some(Answer::Redirect(to)) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response(),
        Some(Answer::After(milliseconds)) => {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            StatusCode::OK.into_response()
        }
    }
}

/// An operator's file with the demo's table and webhooks.
struct Operator(Catalog);

impl Operator {
    fn with(blocks: &[String]) -> Operator {
        let users = "[[dataset]]\nname = \"users\"\ntable = \"users\"\ncreated_at = \"created_at\"\nupdated_at = \"updated_at\"\n\
                     deleted = \"is_deleted\"\n";
        Operator(Catalog::of(&format!("{users}{}", blocks.concat())))
    }

    fn start(&self, database: &Database) -> Start {
        self.0.start(database).with("HOOK_SECRET", format!("{SECRET} {OLD_SECRET}"))
    }
}

/// Starts a service with a webhook at a closed port, and with more blocks of the operator's file.
pub(crate) async fn with_a_closed_door(database: &Database, more: &str) -> Service {
    let nobody = Receiver { port: 1, ..Receiver::default() };
    Operator::with(&[nobody.block("closed", ""), more.to_owned()]).start(database).service().await
}

/// Waits until the only delivery has this status and number of attempts.
async fn stands(service: &Service, status: &str, attempt: u64) -> Value {
    eventually("a delivery", || async {
        let [delivery] = service.deliveries("").await.try_into().unwrap();
        Some(delivery).filter(|it: &Value| it["status"] == status && it["attempt"] == attempt)
    })
    .await
}

const DUE: &str = "update cdc_export.deliveries set run_at = clock_timestamp() where run_at < 'infinity'";

#[tokio::test]
async fn each_end_is_delivered_once_and_signed() {
    let database = Database::with_users(5).await;
    let receiver = Receiver::start().await;
    let service = Operator::with(&[receiver.block("all", "")]);
    let service =
        service.start(&database).with("MAX_ATTEMPTS", 1).with("FAILPOINTS", "sink.write=error").service().await;
    let failed = service.submit("full", "a").await;
    assert_eq!(service.ended(&failed).await["status"], "failed");
    let (completed, _) = service.export("full", "a").await;
    let held = database.hold_exports().await;
    let cancelled = service.submit("delta", "a").await;
    let path = format!("/exports/{cancelled}/cancel");
    assert_eq!(service.call("POST", &path, &[]).await.status(), 202);
    held.rollback().await.unwrap();
    assert_eq!(service.ended(&cancelled).await["status"], "cancelled");
    // This export has no consumer.
    let adhoc = service.call("POST", "/exports", &[]).await.json::<Value>().await.unwrap();
    let adhoc = service.ended(adhoc["jobId"].as_str().unwrap()).await;

    let heard = receiver.hears(4).await;
    let of = |job: &str| {
        let mut found = heard.iter().filter(|it| it.event["data"]["jobId"] == job);
        (found.next().unwrap().clone(), found.count())
    };
    let id = completed["jobId"].as_str().unwrap();
    for (job, word) in [(failed.as_str(), "failed"), (id, "completed"), (&cancelled, "cancelled")] {
        let (Heard { id, signed, event }, others) = of(job);
        assert!(signed && others == 0, "{event}");
        assert_eq!(event["id"], id);
        assert_eq!(event["type"], format!("cdc-export.export.{word}.v1"));
        assert_eq!((&event["specversion"], &event["subject"]), (&json!("1.0"), &json!("users/a")));
        assert!(event["source"].as_str().unwrap().starts_with("/cdc-export/"));
        assert_eq!(event["data"], service.job(job).await, "as the API shows it");
    }
    assert_eq!(of(adhoc["jobId"].as_str().unwrap()).0.event["subject"], "users");
    let told = eventually("they are delivered", || async {
        let told = service.deliveries("?status=delivered").await;
        Some(told).filter(|told| told.len() == 4)
    })
    .await;
    assert_eq!(
        told.iter().map(|it| it["jobId"].as_str().unwrap()).collect::<Vec<_>>(),
        [adhoc["jobId"].as_str().unwrap(), &cancelled, id, &failed]
    );
    assert!(service.deliveries("?status=pending").await.is_empty());
    assert!(service.deliveries("?endpoint=other").await.is_empty());
    let page = service.call("GET", "/deliveries?limit=2", &[]).await.json::<Value>().await.unwrap();
    let next = format!("?limit=2&cursor={}", page["nextCursor"].as_str().unwrap());
    assert_eq!(service.deliveries(&next).await, told[2..]);
    let metrics = service.call("GET", "/metrics", &[]).await.text().await.unwrap();
    assert!(metrics.contains("cdc_export_deliveries_total{endpoint=\"all\",outcome=\"delivered\"} 4"), "{metrics}");
}

#[tokio::test]
async fn an_event_that_is_not_accepted_is_retried_and_then_dead() {
    let database = Database::with_users(5).await;
    let [receiver, other] = [Receiver::start().await, Receiver::start().await];
    receiver.answers([Answer::Status(500), Answer::Redirect(format!("http://localhost:{}/", other.port))]);
    let operator = Operator::with(&[receiver.block("all", "")]);
    let service = operator.start(&database).service().await;
    service.export("full", "a").await;
    let mut delivery = Value::Null;
    for (attempt, status, pause) in [(1, 500, 5.0), (2, 307, 30.0)] {
        stands(&service, "pending", attempt).await;
        // Until the answer is recorded, it is put off by the lease.
        delivery = eventually("a record", || async {
            let [now] = service.deliveries("").await.try_into().unwrap();
            Some(now).filter(|now: &Value| now["lastStatus"] == status)
        })
        .await;
        assert_eq!(delivery["lastError"], json!(format!("it answered {status}")));
        assert_eq!(delivery["endedAt"], Value::Null);
        let wait: f64 = database
            .one("select extract(epoch from run_at - clock_timestamp())::float8 from cdc_export.deliveries")
            .await;
        assert!(wait <= pause * 1.2 && wait > pause * 0.8 - 4.0, "{attempt} {wait}");
        assert_eq!(receiver.heard().len() as u64, attempt);
        if attempt == 2 {
            receiver.answers((0..7).map(|_| Answer::Status(503)));
        }
        database.run(DUE).await;
    }
    for attempt in 3..=8 {
        receiver.hears(attempt).await;
        eventually("a record", || async {
            let [now] = service.deliveries("").await.try_into().unwrap();
            let is_recorded = database
                .one::<bool>("select run_at - clock_timestamp() > interval '61 s' from cdc_export.deliveries")
                .await;
            Some(now).filter(|now: &Value| now["attempt"] == attempt && is_recorded)
        })
        .await;
        database.run(DUE).await;
    }
    let dead = stands(&service, "dead", 9).await;
    assert_eq!((&dead["nextAttemptAt"], &dead["lastStatus"]), (&Value::Null, &json!(503)));
    assert_eq!(service.deliveries("?status=dead&endpoint=all").await, std::slice::from_ref(&dead));
    let metrics = service.call("GET", "/metrics", &[]).await.text().await.unwrap();
    assert!(metrics.contains("cdc_export_deliveries_undelivered{endpoint=\"all\",status=\"dead\"} 1"), "{metrics}");
    assert_eq!(service.events("delivery_failed").len(), 9);
    assert!(!service.log().contains("token"), "an address may have a secret in it");

    let path = format!("/deliveries/{}/redeliver", delivery["deliveryId"].as_str().unwrap());
    let answer = service.call("POST", &path, &[]).await;
    assert_eq!((answer.status().as_u16(), answer.json::<Value>().await.unwrap()["attempt"].clone()), (202, json!(0)));
    stands(&service, "delivered", 1).await;
    // An event that the receiver accepted is delivered again, too.
    assert_eq!(service.call("POST", &path, &[]).await.status(), 202);
    let heard = receiver.hears(11).await;
    assert!(heard.iter().all(|it| it.id == delivery["deliveryId"].as_str().unwrap() && it.signed));
    assert!(other.heard().is_empty(), "a redirect is not followed");
    for query in ["endpoint=%00", "endpoint=", "cursor=x", "status=gone"] {
        service.refuses("GET", &format!("/deliveries?{query}"), &[], 400, "parameter_invalid").await;
    }
    for id in ["x", "01a1f83b-6d1e-7c1a-9d4e-2f6f1f0c9a11"] {
        service.refuses("POST", &format!("/deliveries/{id}/redeliver"), &[], 404, "not_found").await;
    }
    service.stop().await;

    let without = Operator::with(&[]).start(&database).service().await;
    without.refuses("POST", &path, &[], 409, "no_endpoint").await;
}

#[tokio::test]
async fn a_hanging_receiver_delays_no_other_and_a_gone_receiver_gets_no_more_events() {
    let database = Database::with_users(5).await;
    let [slow, gone, good] = [Receiver::start().await, Receiver::start().await, Receiver::start().await];
    slow.answers((0..50).map(|_| Answer::After(600_000)));
    gone.answers((0..50).map(|_| Answer::Status(410)));
    let operator = Operator::with(&[slow.block("slow", ""), gone.block("gone", ""), good.block("good", "")]);
    let service = operator.start(&database).service().await;
    service.export("full", "a").await;
    eventually("one is gone", || async { service.events("receiver_gone").pop() }).await;
    for _ in 0..11 {
        service.export("delta", "a").await;
    }
    good.hears(12).await;
    assert_eq!(gone.heard().len(), 1);
    let dead = service.deliveries("?endpoint=gone&status=dead").await;
    assert_eq!((dead.len(), &dead[0]["lastStatus"]), (1, &json!(410)));
    assert_eq!(service.deliveries("?endpoint=gone&status=pending").await.len(), 11);
    service.stop().await;

    // Each start asks the receiver once.
    let service = operator.start(&database).service().await;
    eventually("it is gone still", || async { service.events("receiver_gone").pop() }).await;
    assert_eq!(service.deliveries("?endpoint=gone&status=dead").await.len(), 2);
}

#[tokio::test]
async fn a_crash_before_the_record_delivers_again_under_the_same_id() {
    let database = Database::with_users(5).await;
    let receiver = Receiver::start().await;
    let operator = Operator::with(&[receiver.block("all", "")]);
    let mut dead = operator.start(&database).with("FAILPOINTS", "delivery.answered=kill").service().await;
    let id = dead.submit("full", "a").await;
    dead.dies().await;
    let first = receiver.hears(1).await;
    let service = operator.start(&database).sharing_output(&dead).service().await;
    let [delivery] = service.deliveries("").await.try_into().unwrap();
    assert_eq!((&delivery["status"], &delivery["jobId"]), (&json!("pending"), &json!(id)));
    assert_eq!(receiver.heard().len(), 1, "as long as the other may be alive");
    database.run(DUE).await;
    let both = receiver.hears(2).await;
    assert_eq!((&both[0].event, &both[0].id), (&both[1].event, &first[0].id));
    // The first try has no end.
    stands(&service, "delivered", 1).await;
}

#[tokio::test]
async fn a_private_address_has_to_be_allowed() {
    let database = Database::new().await;
    let nobody = Receiver { port: 1, ..Receiver::default() };
    let public = nobody.block("public", "").replace("allow_private = true", "");
    for (host, why) in [
        ("localhost", "is private"),
        ("127.0.0.1", "is private"),
        ("169.254.169.254", "is a cloud's metadata, link-local"),
    ] {
        let operator = Operator::with(&[public.replace("localhost", host)]);
        let (code, said) = operator.start(&database).until_it_ends().await;
        assert!(code == 2 && said.contains("webhook public: url: its address ") && said.contains(why), "{said}");
    }
}

#[tokio::test]
async fn a_missing_secret_stops_the_start() {
    let database = Database::new().await;
    let operator = Operator::with(&[Receiver::start().await.block("all", "")]);
    for (value, why) in [
        ("", "the variable HOOK_SECRET, which has its secret, is unset"),
        ("whsec_secret", "HOOK_SECRET: `whsec_` and 24"),
    ] {
        for command in [&[][..], &["worker"]] {
            let start = operator.start(&database).arguments(command).with("HOOK_SECRET", value);
            let (code, said) = start.until_it_ends().await;
            assert_eq!(code, 2, "{said}");
            assert!(said.contains(why) && said.contains("webhook all: ") && !said.contains("whsec_secret"), "{said}");
        }
    }
    // A process that delivers no events needs no secret.
    let api = operator.start(&database).arguments(&["serve", "--no-workers"]).with("HOOK_SECRET", "");
    api.service().await.stop().await;
}
