//! A RabbitMQ that is stopped, killed or full.

#[path = "../suite/amqp/broker.rs"]
mod broker;
#[path = "../suite/amqp/operator.rs"]
mod operator;

use std::collections::BTreeSet;

use lapin::types::{AMQPValue, FieldTable};
use nix::sys::signal::Signal;

use crate::amqp::broker::{Broker, Message, SERVER};
use crate::amqp::operator::{DUE, EXPORTS, all_delivered, operator, start};
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
    let operator = operator(EXPORTS);
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
    let pending = service.deliveries("?status=pending").await;
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
        Some(service.deliveries("?status=delivered&limit=200").await).filter(|told| told.len() == made.len())
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
        let refused = service.deliveries("?status=pending").await;
        refused.into_iter().find(|it| it["lastError"] == "the broker refused the message: a queue is full")
    })
    .await;
    assert_eq!(client.takes("narrow", 1).await.len(), 1);
    database.run(DUE).await;
    all_delivered(&service, told.len() + 2).await;
}
