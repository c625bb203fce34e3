//! A process that is stopped while receivers are told.

use nix::sys::signal::Signal;

use super::{Answer, Operator, Receiver};
use crate::harness::{Database, until};

/// During the last exports of a drain, answered events are recorded, and unanswered ones have no lease to wait for.
#[tokio::test]
async fn a_stop_releases_the_claimed_events() {
    let database = Database::with_users(5).await;
    let mut receivers = Vec::new();
    for _ in 0..9 {
        receivers.push(Receiver::start().await);
    }
    let blocks: Vec<_> = (0..).zip(&receivers).map(|(n, receiver)| receiver.block(&format!("r{n}"), "")).collect();
    let operator = Operator::with(&blocks);
    let start = operator.start(&database).with("DRAIN_SECONDS", 60).with("WORKERS", 3);
    let mut service = start.service().await;
    // Each has taken an event before, so that it gets several at a time.
    service.export("full", "first").await;
    let untold = "select count(*) from cdc_export.deliveries where delivered_at is null";
    until("all are told", async || database.one::<i64>(untold).await == 0).await;

    let (hanging, others) = receivers.split_last().unwrap();
    hanging.answers((0..3).map(|_| Answer::After(60_000)));
    for receiver in others {
        receiver.answers((0..3).map(|_| Answer::After(1500)));
    }
    let held = database.hold_exports().await;
    for consumer in ["a", "b", "c"] {
        let id = service.submit("full", consumer).await;
        until("it runs", async || service.job(&id).await["status"] == "processing").await;
    }
    service.signal(Signal::SIGTERM);
    held.rollback().await.unwrap();
    assert_eq!(service.exit().await, Some(0));

    // An event that nobody has begun to deliver is due. No event has a lease that nobody keeps any more.
    let leased = "select count(*) from cdc_export.deliveries where delivered_at is null and run_at > clock_timestamp() + interval '10 s'";
    assert_eq!(database.one::<i64>(leased).await, 0);
    for (n, receiver) in others.iter().enumerate() {
        let told = format!(
            "select coalesce(array_agg(id::text order by id::text), '{{}}') from cdc_export.deliveries
             where endpoint = 'r{n}' and delivered_at is not null"
        );
        let mut heard: Vec<_> = receiver.heard().into_iter().map(|heard| heard.id).collect();
        heard.sort();
        assert_eq!(database.one::<Vec<String>>(&told).await, heard, "r{n}: each has answered");
    }
    let begun = "select coalesce(array_agg(last_error), '{}') from cdc_export.deliveries
         where endpoint = 'r8' and delivered_at is null and attempt > 0";
    let given_up: Vec<String> = database.one(begun).await;
    assert_eq!(given_up.len(), hanging.heard().len() - 1);
    assert!(given_up.iter().all(|why| why == "the process ended before there was an answer"), "{given_up:?}");
}
