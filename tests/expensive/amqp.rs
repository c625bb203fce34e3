//! A RabbitMQ that is stopped, killed or full, and requests of every kind.

#[path = "../suite/amqp/broker.rs"]
mod broker;
#[path = "../suite/amqp/operator.rs"]
mod operator;
mod requests;

use std::collections::BTreeSet;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::amqp::broker::{Broker, Message, SERVER, TRACEPARENT};
use crate::amqp::operator::{ASKED, DUE, TOLD, all_delivered, deliveries, operator, start};
use crate::harness::{Database, eventually, lacks};

fn ids(messages: &[Message]) -> BTreeSet<String> {
    messages.iter().map(|message| message.id.clone()).collect()
}

#[tokio::test]
async fn a_broker_that_is_stopped_killed_or_full_loses_nothing() {
    if lacks(SERVER, "rabbitmq-server") {
        return;
    }
    let (database, mut broker) = (Database::new().await, Broker::start().await);
    database.add_users(1, 5).await;
    let client = broker.client().await;
    client.exchange("exports").await;
    client.queue("all", "exports", "#", FieldTable::default()).await;
    let mut one = FieldTable::default();
    one.insert("x-max-length".into(), AMQPValue::LongInt(1));
    one.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    client.queue("narrow", "exports", "completed.users.narrow", one).await;
    let operator = operator(TOLD);
    let service = start(&operator, &database, &broker).service().await;

    let mut made = Vec::new();
    let export = async |consumer: &str| service.export("full", consumer).await.0["jobId"].as_str().unwrap().to_owned();
    made.push(export("a").await);
    all_delivered(&service, 1).await;
    // Stopped: what ends meanwhile waits, and loses no try.
    broker.ends(Signal::SIGTERM).await;
    for _ in 0..5 {
        made.push(export("a").await);
    }
    eventually("a complaint", || async { service.events("deliveries_failed").pop() }).await;
    let pending = deliveries(&service, "?status=pending").await;
    assert_eq!(pending.len(), 5);
    assert!(pending.iter().all(|it| it["attempt"].as_u64().unwrap() <= 1), "{pending:?}");
    broker.starts("").await;
    all_delivered(&service, 6).await;
    // Killed, while events are published.
    for number in 0..12 {
        made.push(service.submit("full", &format!("b{number}")).await);
    }
    broker.ends(Signal::SIGKILL).await;
    for id in &made {
        service.ended(id).await;
    }
    // Full: with its disk limit above the disk's size a broker stops reading from who publishes.
    broker.starts("disk_free_limit.absolute = 1000000GB").await;
    made.push(export("full").await);
    eventually("a complaint", || async {
        service
            .events("deliveries_failed")
            .into_iter()
            .find(|it| it["error"].as_str().unwrap().contains("short of memory or disk"))
    })
    .await;
    broker.ends(Signal::SIGTERM).await;
    broker.starts("").await;
    // Those that failed before have pauses of up to minutes.
    let told = eventually("they are delivered", || async {
        database.run(DUE).await;
        Some(deliveries(&service, "?status=delivered&limit=200").await).filter(|told| told.len() == made.len())
    })
    .await;
    let client = broker.client().await;
    let mut messages = Vec::new();
    while let Some(message) = client.takes_one("all").await {
        messages.push(message);
    }
    let of = |name: &str| told.iter().map(|it| it[name].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(ids(&messages), of("deliveryId"));
    assert_eq!(of("jobId"), made.into_iter().collect());

    // A queue that is full: the broker says so.
    for _ in 0..2 {
        export("narrow").await;
    }
    eventually("a refusal", || async {
        let refused = deliveries(&service, "?status=pending").await;
        refused.into_iter().find(|it| it["lastError"] == "the broker refused the message: a queue is full")
    })
    .await;
    assert_eq!(client.takes("narrow", 1).await.len(), 1);
    database.run(DUE).await;
    all_delivered(&service, told.len() + 2).await;
    service.stop().await;
}

#[tokio::test]
async fn a_request_becomes_one_export_and_a_bad_one_is_laid_aside_with_the_problem() {
    if lacks(SERVER, "rabbitmq-server") {
        return;
    }
    let (database, mut broker) = (Database::new().await, Broker::start().await);
    database.add_users(1, 5).await;
    let client = broker.client().await;
    client.exchange("refused").await;
    let operator = operator(ASKED);
    let service = start(&operator, &database, &broker).service().await;
    eventually("a complaint", || async {
        service
            .events("queue_failed")
            .into_iter()
            .find(|it| it["error"].as_str().unwrap().contains("the queue requests: "))
    })
    .await;
    client.queue("requests", "", "", FieldTable::default()).await;

    // The same message twice.
    for _ in 0..2 {
        client.asks("requests", "first", Some("search"), r#"{"exportType": "full", "format": "ndjson"}"#).await;
    }
    client.asks("requests", "ad-hoc", None, r#"{"limit": 2}"#).await;
    let jobs = async || database.one::<i64>("select count(*) from exports").await;
    eventually("two jobs", || async { (jobs().await == 2).then_some(()) }).await;
    let job: String = database.one("select id::text from exports where consumer_id = 'search'").await;
    let job = service.ended(&job).await;
    assert_eq!(
        (&job["status"], &job["exportType"], &job["format"]),
        (&json!("completed"), &json!("full"), &json!("ndjson"))
    );

    let of_messages = "select count(*) filter (where traceparent = '".to_owned() + TRACEPARENT + "') from exports";
    assert_eq!(database.one::<i64>(&of_messages).await, 2);

    // A refused one waits in its queue until it can be laid where somebody finds it.
    let bad = r#"{"exportType": "delta", "colums": ["id"]}"#;
    let properties = BasicProperties::default()
        .with_message_id("bad".into())
        .with_content_type("application/json".into())
        .with_user_id("guest".into())
        .with_expiration("600000".into())
        .with_correlation_id("mine".into());
    let mut headers = FieldTable::default();
    headers.insert("x-consumer-id".into(), AMQPValue::LongString("search".into()));
    headers.insert("trace".into(), AMQPValue::LongString("t".into()));
    client.publishes("requests", properties.with_headers(headers), bad).await;
    eventually("a complaint", || async {
        service
            .events("queue_failed")
            .into_iter()
            .find(|it| it["error"].as_str().unwrap().contains("no queue is bound to the exchange refused"))
    })
    .await;
    client.queue("aside", "refused", "#", FieldTable::default()).await;
    let [message] = client.takes("aside", 1).await.try_into().unwrap();
    assert_eq!((message.id.as_str(), message.body.as_slice()), ("bad", bad.as_bytes()));
    assert_eq!(
        (message.header("trace").as_deref(), message.header("x-consumer-id").as_deref()),
        (Some("t"), Some("search"))
    );
    assert_eq!(message.properties.correlation_id().as_ref().unwrap().as_str(), "mine");
    assert!(message.properties.expiration().is_none() && message.properties.user_id().is_none());
    let answer = service.client.post(format!("{}/exports", service.address)).header("X-Consumer-ID", "search");
    let answer = answer.header("Content-Type", "application/json").body(bad).send().await.unwrap();
    let problem: Value = serde_json::from_str(&message.header("cdc-export-problem").unwrap()).unwrap();
    assert_eq!(problem, answer.json::<Value>().await.unwrap(), "as the API says it");

    for (id, consumer, body, code) in [
        ("", Some("search"), "{}", "idempotency_key_invalid"),
        ("a b", Some("search"), "{}", "idempotency_key_invalid"),
        ("c1", Some("no one"), "{}", "consumer_invalid"),
        ("c2", None, r#"{"exportType": "delta"}"#, "consumer_required"),
        ("c3", Some("search"), "[]", "invalid_body"),
        ("c4", Some("search"), r#"{"dataset": "none"}"#, "member_invalid"),
        ("first", Some("search"), r#"{"exportType": "delta"}"#, "idempotency_key_reused"),
    ] {
        client.asks("requests", id, consumer, body).await;
        let [message] = client.takes("aside", 1).await.try_into().unwrap();
        let problem: Value = serde_json::from_str(&message.header("cdc-export-problem").unwrap()).unwrap();
        assert_eq!((problem["code"].as_str(), message.id.as_str()), (Some(code), id), "{problem}");
    }
    assert_eq!(jobs().await, 2);
    // A problem that is longer than a header can be.
    client.asks("requests", "long", Some("search"), &format!(r#"{{"{}": 1}}"#, "x".repeat(300_000))).await;
    let [message] = client.takes("aside", 1).await.try_into().unwrap();
    let problem: Value = serde_json::from_str(&message.header("cdc-export-problem").unwrap()).unwrap();
    assert_eq!((problem["code"].as_str(), problem["detail"].as_str().unwrap().len()), (Some("member_unknown"), 1_000));
    assert_eq!(message.body.len(), 300_007);

    // What can't be met now waits.
    let held = database.hold_exports().await;
    for number in 0..22 {
        client.asks("requests", &format!("busy{number}"), Some("busy"), "").await;
    }
    eventually("one that waits", || async {
        service
            .events("queue_failed")
            .into_iter()
            .find(|it| it["error"].as_str().unwrap().contains("too_many_open_jobs"))
    })
    .await;
    // Meanwhile the broker is killed: what was not acknowledged is delivered again.
    broker.ends(Signal::SIGKILL).await;
    broker.starts("").await;
    held.rollback().await.unwrap();
    eventually("all of them", || async { (jobs().await == 24).then_some(()) }).await;
    let client = broker.client().await;
    eventually("an empty queue", || async { (client.waiting("requests").await == 0).then_some(()) }).await;
    let metrics = service.call("GET", "/metrics", &[]).await.text().await.unwrap();
    assert!(metrics.contains("cdc_export_amqp_requests_total{endpoint=\"rabbit\",outcome=\"refused\"} 9"), "{metrics}");
    service.stop().await;
    assert_eq!(client.waiting("requests").await, 0, "all were acknowledged");
}
