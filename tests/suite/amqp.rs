//! AMQP: events are published to an exchange, and requests from a queue become exports, also after failures.

#[expect(dead_code, reason = "the expensive tests use more of it")]
mod broker;
mod operator;
mod tls;

use lapin::types::FieldTable;
use serde_json::{Value, json};

use crate::amqp::broker::{Broker, SERVER, TRACEPARENT};
use crate::amqp::operator::{ASKED, DUE, TOLD, all_delivered, deliveries, operator, start};
use crate::catalog::Catalog;
use crate::harness::{Database, eventually, lacks};

/// These scenarios leave the broker intact, so they share one: a start takes seconds.
#[tokio::test]
async fn a_broker_gets_each_event_and_brings_each_request_once() {
    if lacks(SERVER, "rabbitmq-server") {
        return;
    }
    let broker = Broker::start().await;
    each_end_is_published_when_its_queue_exists(&broker).await;
    only_an_unroutable_event_fails(&broker).await;
    a_crash_before_the_acknowledgement_makes_no_second_export(&broker).await;
}

async fn each_end_is_published_when_its_queue_exists(broker: &Broker) {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let client = broker.client().await;
    let operator = operator(TOLD);
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
        let [delivery] = deliveries(&service, "").await.try_into().unwrap();
        Some(delivery).filter(|it: &Value| !it["lastError"].is_null())
    })
    .await;
    assert_eq!(refused["lastError"], "no queue is bound to the exchange exports for failed.users.a");
    assert_eq!(
        (&refused["attempt"], &refused["lastStatus"], &refused["status"]),
        (&json!(1), &Value::Null, &json!("pending"))
    );

    let (completed, _) = service.export("full", "a.b").await;
    let [message] = client.takes("completed", 1).await.try_into().unwrap();
    let of_completed = deliveries(&service, "").await[0].clone();
    assert_eq!(
        (of_completed["deliveryId"].as_str(), of_completed["jobId"].as_str()),
        (Some(message.id.as_str()), completed["jobId"].as_str())
    );
    assert_eq!(message.routing_key, "completed.users.a.b");
    let properties = &message.properties;
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/cloudevents+json");
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), "cdc-export.export.completed.v1");
    assert_eq!(*properties.delivery_mode(), Some(2));
    let event = message.json();
    assert_eq!((event["id"].as_str(), &event["subject"]), (Some(message.id.as_str()), &json!("users/a.b")));
    assert_eq!(event["data"], service.job(completed["jobId"].as_str().unwrap()).await);

    client.queue("failed", "exports", "failed.#", FieldTable::default()).await;
    database.run(&format!("update exports set traceparent = '{TRACEPARENT}' where consumer_id = 'a'")).await;
    database.run(DUE).await;
    let [message] = client.takes("failed", 1).await.try_into().unwrap();
    assert_eq!(message.header("traceparent").as_deref(), Some(TRACEPARENT));
    assert_eq!(Some(message.id.as_str()), refused["deliveryId"].as_str());
    all_delivered(&service, 2).await;
    service.stop().await;
}

/// Eight events are published at once. A returned message is matched with its own event.
async fn only_an_unroutable_event_fails(broker: &Broker) {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let operator = operator("exchange = \"other-exports\"\n");
    let service = start(&operator, &database, broker).service().await;
    // As if as many exports had ended while the exchange was missing: half of them of a consumer that no queue is bound
    // for.
    let [routable, other] = [service.export("full", "a").await.0, service.export("full", "b").await.0];
    let again = start(&operator, &database, broker).sharing_output(&service);
    service.stop().await;
    for (job, number) in [(&routable, 200), (&other, 200)] {
        let job = job["jobId"].as_str().unwrap();
        database
            .run(&format!(
                "with copies as (
                   insert into exports select (jsonb_populate_record(e, jsonb_build_object('id', gen_random_uuid(), 'lane_sequence', 1000 + n,
                     'number', 1000 + n, 'output_filename', e.output_filename || n, 'idempotency_key', null))).*
                   from exports e, generate_series(1, {number}) n where id = '{job}' returning id)
                 insert into cdc_export.deliveries (id, job, endpoint, event) select gen_random_uuid(), id, 'rabbit', 'completed' from copies"
            ))
            .await;
    }
    let client = broker.client().await;
    client.exchange("other-exports").await;
    client.queue("of-a", "other-exports", "completed.users.a", FieldTable::default()).await;
    // Only now: between the two calls the exchange has no queue for anybody.
    let service = again.service().await;
    let counts = "select count(*) filter (where delivered_at is not null and e.consumer_id = 'a') || ' '
        || count(*) filter (where delivered_at is null and last_error like 'no queue is bound%' and e.consumer_id = 'b') || ' '
        || count(*) filter (where last_error is null and delivered_at is null)
        from cdc_export.deliveries d join exports e on e.id = d.job";
    // A broker that answers late on a busy machine costs a message an attempt, but never has it called one without a
    // queue.
    let mixed_up = "select count(*) from cdc_export.deliveries d join exports e on e.id = d.job
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
    let wrong = "select count(*) from cdc_export.deliveries d join exports e on e.id = d.job
        where (d.delivered_at is not null) <> (e.consumer_id = 'a')";
    assert_eq!((seen.as_str(), database.one::<i64>(wrong).await), ("201 201 0", 0));
    assert_eq!(client.waiting("of-a").await, 201);
    service.stop().await;
}

async fn a_crash_before_the_acknowledgement_makes_no_second_export(broker: &Broker) {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let client = broker.client().await;
    client.exchange("refused").await;
    client.queue("aside", "refused", "#", FieldTable::default()).await;
    client.queue("requests", "", "", FieldTable::default()).await;
    let operator = operator(&format!("{ASKED}consumers = [\"search\"]\n"));
    let mut dead = start(&operator, &database, broker).with("FAILPOINTS", "amqp.submitted=kill").service().await;
    client.asks("requests", "one", Some("search"), "").await;
    dead.dies().await;
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 1);
    // The API alone takes requests, too.
    let service = start(&operator, &database, broker).sharing_output(&dead).arguments(&["serve", "--no-workers"]);
    let service = service.service().await;
    eventually("an empty queue", || async {
        let metrics = service.call("GET", "/metrics", &[]).await.text().await.unwrap();
        metrics.contains("cdc_export_amqp_requests_total{endpoint=\"rabbit\",outcome=\"accepted\"} 1").then_some(())
    })
    .await;
    for (id, consumer, body, code) in [
        ("two", Some("other"), "", "consumer_not_allowed"),
        ("three", None, "", "consumer_not_allowed"),
        ("four", Some("search"), r#"{"compression":"snappy"}"#, "member_invalid"),
    ] {
        client.asks("requests", id, consumer, body).await;
        let [message] = client.takes("aside", 1).await.try_into().unwrap();
        let problem: Value = serde_json::from_str(&message.header("cdc-export-problem").unwrap()).unwrap();
        assert_eq!(problem["code"], code, "{problem}");
    }
    service.stop().await;
    assert_eq!((client.waiting("requests").await, database.one::<i64>("select count(*) from exports").await), (0, 1));
}

#[tokio::test]
async fn a_missing_address_stops_the_start() {
    let database = Database::new().await;
    let (told, asked) = (operator(TOLD), operator(ASKED));
    for (value, why) in [
        ("", "amqp rabbit: the variable RABBIT_AMQP_URL, which has its address, is unset"),
        ("http://guest:secret@h", "amqp rabbit: RABBIT_AMQP_URL: an address such as amqps://"),
    ] {
        let check = ["datasets", "check"];
        for (catalog, command) in [
            (&told, &[][..]),
            (&told, &["worker"]),
            (&told, &check),
            (&asked, &[]),
            (&asked, &["serve", "--no-workers"]),
            (&asked, &check),
        ] {
            let start = catalog.start(&database).arguments(command).with("RABBIT_AMQP_URL", value);
            let (code, said) = start.until_it_ends().await;
            let is_said_once = said.matches(why).count() == 1 && !said.contains("secret");
            assert!(code == 2 && is_said_once, "{command:?} {code} {said}");
        }
    }
    // Who doesn't need it doesn't ask for it.
    let service = told.start(&database).arguments(&["serve", "--no-workers"]).service().await;
    service.stop().await;
}

/// Two blocks with one queue would refuse each other's requests, and refused requests must not reach receivers of
/// events.
#[tokio::test]
async fn two_blocks_of_one_broker_do_not_conflict() {
    let database = Database::new().await;
    let second = |members: &str| {
        let other = format!("[[amqp]]\nname = \"other\"\nurl_env = \"OTHER_AMQP_URL\"\n{members}");
        operator(&format!("{TOLD}{ASKED}{other}"))
    };
    let check = async |catalog: &Catalog, other: &str| {
        let start = catalog.start(&database).arguments(&["datasets", "check"]);
        let start = start.with("RABBIT_AMQP_URL", "amqp://a:b@h").with("OTHER_AMQP_URL", other);
        start.until_it_ends().await
    };
    for (members, why) in [
        (
            "queue = \"requests\"\ndead_letter_exchange = \"aside\"\n",
            "amqp other: queue: amqp rabbit takes the requests of this",
        ),
        ("exchange = \"refused\"\n", "amqp other: exchange: it is the `dead_letter_exchange` of amqp rabbit: "),
        (
            "queue = \"q\"\ndead_letter_exchange = \"exports\"\n",
            "amqp other: dead_letter_exchange: it is the `exchange` of amqp rabbit: ",
        ),
    ] {
        let catalog = second(members);
        let (code, said) = check(&catalog, "amqp://c:d@H:5672/%2f").await;
        assert!(code == 2 && said.matches(why).count() == 1 && !said.contains("c:d"), "{code} {said}");
        let (code, said) = check(&catalog, "amqp://c:d@h/other").await;
        assert!(code == 0, "{said}");
    }
}
