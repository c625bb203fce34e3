//! AMQP: events are published to an exchange, also after failures.

#[expect(dead_code, reason = "the expensive tests use more of it")]
mod broker;
mod operator;
mod tls;

use lapin::types::FieldTable;
use serde_json::{Value, json};

use crate::amqp::broker::{Broker, SERVER};
use crate::amqp::operator::{DUE, EXPORTS, all_delivered, operator, start};
use crate::harness::{Database, eventually, lacks};

/// These scenarios leave the broker intact, so they share one: a start takes seconds.
#[tokio::test]
async fn a_broker_gets_each_event() {
    if lacks(SERVER, "rabbitmq-server") {
        return;
    }
    let broker = Broker::start().await;
    each_end_is_published_when_its_queue_exists(&broker).await;
    only_an_unroutable_event_fails(&broker).await;
}

/// Trace of the failed export.
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn each_end_is_published_when_its_queue_exists(broker: &Broker) {
    let database = Database::with_users(5).await;
    let client = broker.client().await;
    let operator = operator(EXPORTS);
    let service = start(&operator, &database, broker)
        .with("MAX_ATTEMPTS", 1)
        .with("FAILPOINTS", "sink.write=error")
        .service()
        .await;
    // Nothing loses a try before the operator has made the exchange.
    let failed = service.submit("full", "a").await;
    service.ended(&failed).await;
    eventually("a complaint", || async {
        service
            .events("deliveries_failed")
            .into_iter()
            .find(|it| it["error"].as_str().unwrap().contains("the exchange exports: "))
    })
    .await;
    client.exchange("exports").await;
    client.queue("completed", "exports", "completed.users.#", FieldTable::default()).await;
    let refused = eventually("a refusal", || async {
        let [delivery] = service.deliveries("").await.try_into().unwrap();
        Some(delivery).filter(|it: &Value| !it["lastError"].is_null())
    })
    .await;
    assert_eq!(refused["lastError"], "no queue is bound to the exchange exports for failed.users.a");
    assert_eq!(refused["attempt"], 1);
    assert_eq!(refused["lastStatus"], Value::Null);
    assert_eq!(refused["status"], "pending");

    let (completed, _) = service.export("full", "a.b").await;
    let [message] = client.takes("completed", 1).await.try_into().unwrap();
    let of_completed = service.deliveries("").await[0].clone();
    assert_eq!(of_completed["deliveryId"].as_str(), Some(message.id.as_str()));
    assert_eq!(of_completed["jobId"].as_str(), completed["jobId"].as_str());
    assert_eq!(message.routing_key, "completed.users.a.b");
    let properties = &message.properties;
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/cloudevents+json");
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), "cdc-export.export.completed.v1");
    assert_eq!(*properties.delivery_mode(), Some(2));
    let event = message.json();
    assert_eq!((event["id"].as_str(), &event["subject"]), (Some(message.id.as_str()), &json!("users/a.b")));
    assert_eq!(event["data"], service.job(completed["jobId"].as_str().unwrap()).await);

    client.queue("failed", "exports", "failed.#", FieldTable::default()).await;
    database.run(&format!("update cdc_export.jobs set traceparent = '{TRACEPARENT}' where consumer_id = 'a'")).await;
    database.run(DUE).await;
    let [message] = client.takes("failed", 1).await.try_into().unwrap();
    assert_eq!(message.header("traceparent").as_deref(), Some(TRACEPARENT));
    assert_eq!(Some(message.id.as_str()), refused["deliveryId"].as_str());
    all_delivered(&service, 2).await;
}

/// Eight events are published at once. A returned message is matched with its own event.
async fn only_an_unroutable_event_fails(broker: &Broker) {
    let database = Database::with_users(5).await;
    let operator = operator("exchange = \"other-exports\"\n");
    let service = start(&operator, &database, broker).service().await;
    // As if as many exports had ended while the exchange was missing: half of them of a consumer that no queue is bound
    // for.
    let [routable, other] = [service.export("full", "a").await.0, service.export("full", "b").await.0];
    let again = start(&operator, &database, broker).sharing_output(&service);
    service.stop().await;
    for (job, number) in [(&routable, 200), (&other, 200)] {
        let job = job["jobId"].as_str().unwrap();
        let statements = format!(
            "with copies as materialized (select n, gen_random_uuid() as id from generate_series(1, {number}) n),
             jobs as (
               insert into cdc_export.jobs
               select (jsonb_populate_record(j, jsonb_build_object('id', c.id, 'idempotency_key', null))).*
               from cdc_export.jobs j, copies c where j.id = '{job}'),
             exports as (
               insert into cdc_export.exports
               select (jsonb_populate_record(e, jsonb_build_object('job', c.id, 'lane_sequence', 1000 + n,
                 'number', 1000 + n, 'output_filename', e.output_filename || n))).*
               from cdc_export.exports e, copies c where e.job = '{job}')
             insert into cdc_export.deliveries (id, job, endpoint, event)
             select gen_random_uuid(), id, 'rabbit', 'completed' from copies"
        );
        database.run(&statements).await;
    }
    let client = broker.client().await;
    client.exchange("other-exports").await;
    client.queue("of-a", "other-exports", "completed.users.a", FieldTable::default()).await;
    // Only now: between the two calls the exchange has no queue for anybody.
    let _service = again.service().await;
    let counts = "select count(*) filter (where delivered_at is not null and e.consumer_id = 'a') || ' '
        || count(*) filter (where delivered_at is null and last_error like 'no queue is bound%' and e.consumer_id = 'b') || ' '
        || count(*) filter (where last_error is null and delivered_at is null)
        from cdc_export.deliveries d join exports e on e.job = d.job";
    // A broker that answers late on a busy machine costs a message an attempt, but never has it called one without a
    // queue.
    let mixed_up = "select count(*) from cdc_export.deliveries d join exports e on e.job = d.job
        where e.consumer_id = 'a' and last_error like 'no queue is bound%'";
    let mut seen = String::new();
    for _ in 0..600 {
        seen = database.one::<String>(counts).await;
        assert_eq!(database.one::<i64>(mixed_up).await, 0);
        if seen == "201 201 0" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let wrong = "select count(*) from cdc_export.deliveries d join exports e on e.job = d.job
        where (d.delivered_at is not null) <> (e.consumer_id = 'a')";
    assert_eq!((seen.as_str(), database.one::<i64>(wrong).await), ("201 201 0", 0));
    assert_eq!(client.waiting("of-a").await, 201);
}

#[tokio::test]
async fn a_missing_address_stops_the_start() {
    let database = Database::new().await;
    let operator = operator(EXPORTS);
    for (value, why) in [
        ("", "amqp rabbit: the variable RABBIT_AMQP_URL, which has its address, is unset"),
        ("http://guest:secret@h", "amqp rabbit: RABBIT_AMQP_URL: an address such as amqps://"),
    ] {
        for command in [&[][..], &["worker"], &["datasets", "check"]] {
            let start = operator.start(&database).arguments(command).with("RABBIT_AMQP_URL", value);
            let (code, said) = start.until_it_ends().await;
            let is_said_once = said.matches(why).count() == 1 && !said.contains("secret");
            assert!(code == 2 && is_said_once, "{command:?} {code} {said}");
        }
    }
    // A process without deliveries doesn't need the address.
    operator.start(&database).arguments(&["serve", "--no-workers"]).service().await.stop().await;
}
