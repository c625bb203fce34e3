//! A receiver that wants no events any more, and comes back.

use serde_json::json;

use super::{Answer, Operator, Receiver};
use crate::harness::{Database, Service, eventually, until};

/// A service whose only receiver answers so at first, after an export.
async fn exported<const N: usize>(statuses: [u16; N]) -> (Database, Receiver, Operator, Service) {
    let database = Database::with_users(5).await;
    let receiver = Receiver::start().await;
    receiver.answers(statuses.map(Answer::Status));
    let operator = Operator::with(&[receiver.block("gone", "")]);
    let service = operator.start(&database).service().await;
    service.export("full", "a").await;
    (database, receiver, operator, service)
}

/// Nothing that waits is lost to the question whether it is there again, and no start is needed for it.
#[tokio::test]
async fn a_gone_receiver_gets_a_redelivered_event() {
    let (_database, receiver, _operator, service) = exported([410, 410]).await;
    let gone = async |times: usize| {
        until("it is gone", async || service.events("receiver_gone").len() == times).await;
        let [dead] = service.deliveries("?status=dead").await.try_into().unwrap();
        dead
    };
    let dead = gone(1).await;
    assert_eq!(dead["lastStatus"], 410);
    let error = dead["lastError"].as_str().unwrap();
    assert!(error.starts_with("it answered 410, ") && error.contains("asked for again"), "{error}");
    for _ in 0..3 {
        service.export("delta", "a").await;
    }

    let again = format!("/deliveries/{}/redeliver", dead["deliveryId"].as_str().unwrap());
    assert_eq!(service.call("POST", &again, &[]).await.status(), 202);
    assert_eq!(gone(2).await["deliveryId"], dead["deliveryId"]);
    assert_eq!(service.deliveries("?status=pending").await.len(), 3);

    assert_eq!(service.call("POST", &again, &[]).await.status(), 202);
    let heard = receiver.hears(6).await;
    assert!(heard[..3].iter().all(|it| json!(it.id) == dead["deliveryId"]), "one that waits was tried");
    eventually("all are told", async || service.deliveries("?status=delivered").await.get(3).map(|_| ())).await;
    assert_eq!(receiver.heard().len(), 6);
}

/// One that comes back with another trouble is tried as any other that has it.
#[tokio::test]
async fn a_gone_receiver_whose_redelivery_fails_is_no_longer_gone() {
    let (_database, receiver, _operator, service) = exported([410, 503]).await;
    let [dead] = eventually("it is gone", async || service.deliveries("?status=dead").await.try_into().ok()).await;
    let dead: serde_json::Value = dead;
    service.export("delta", "a").await;
    let again = format!("/deliveries/{}/redeliver", dead["deliveryId"].as_str().unwrap());
    assert_eq!(service.call("POST", &again, &[]).await.status(), 202);
    eventually("both are told", async || service.deliveries("?status=delivered").await.get(1).map(|_| ())).await;
    let heard = receiver.heard();
    assert_eq!((heard.len(), heard[0].id == heard[1].id), (4, true));
}

/// Also if nothing is left of the one that it answered so to, since `RETAIN_JOBS` has taken it away.
#[tokio::test]
async fn a_gone_receiver_gets_a_redelivered_event_without_earlier_attempts() {
    let (database, receiver, _operator, service) = exported([410]).await;
    eventually("it is gone", async || service.events("receiver_gone").pop()).await;
    for _ in 0..3 {
        service.export("delta", "a").await;
    }
    database.run("delete from cdc_export.deliveries where dead_at is not null").await;
    let waiting = service.deliveries("").await;
    let again = format!("/deliveries/{}/redeliver", waiting[1]["deliveryId"].as_str().unwrap());
    assert_eq!(service.call("POST", &again, &[]).await.status(), 202);
    eventually("all are told", async || service.deliveries("?status=delivered").await.get(2).map(|_| ())).await;
    let heard = receiver.heard();
    assert_eq!((heard.len(), &heard[1].id), (4, &waiting[1]["deliveryId"].as_str().unwrap().to_owned()));
}
