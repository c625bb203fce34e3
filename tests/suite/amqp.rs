//! A RabbitMQ of its own: the events of ended exports reach an exchange, and requests from a queue become exports, whatever happens to either.

mod broker;
mod requests;
mod tls;

use std::collections::BTreeSet;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::amqp::broker::{Broker, Message, SERVER, TRACEPARENT};
use crate::catalog::Catalog;
use crate::harness::{Database, Service, Start, eventually, lacks};

/// An operator's file with the demo's table and a broker.
fn operator(block: &str) -> Catalog {
    Catalog::of(&format!(
        "[[dataset]]\nname = \"users\"\ntable = \"users\"\ncreated_at = \"created_at\"\nupdated_at = \"updated_at\"\n\
         deleted = \"is_deleted\"\n[[amqp]]\nname = \"rabbit\"\nurl_env = \"RABBIT_AMQP_URL\"\n{block}\n"
    ))
}

fn start(operator: &Catalog, database: &Database, broker: &Broker) -> Start {
    operator.start(database).with("RABBIT_AMQP_URL", broker.url())
}

const TOLD: &str = "exchange = \"exports\"\n";
const ASKED: &str = "queue = \"requests\"\ndead_letter_exchange = \"refused\"\n";
/// Not what is under way.
const DUE: &str = "update cdc_export.deliveries set run_at = clock_timestamp()
    where delivered_at is null and last_error is not null and run_at < 'infinity'";

async fn deliveries(service: &Service, query: &str) -> Vec<Value> {
    let answer = service.call("GET", &format!("/deliveries{query}"), &[]).await;
    assert_eq!(answer.status(), 200);
    answer.json::<Value>().await.unwrap()["items"].as_array().unwrap().clone()
}

async fn all_delivered(service: &Service, number: usize) -> Vec<Value> {
    eventually("they are delivered", || async {
        Some(deliveries(service, "?status=delivered&limit=200").await).filter(|told| told.len() == number)
    })
    .await
}

fn ids(messages: &[Message]) -> BTreeSet<String> {
    messages.iter().map(|message| message.id.clone()).collect()
}

/// These harm no broker, so they have one together: each takes seconds to start.
#[tokio::test]
async fn a_broker_that_is_there_has_each_end_and_brings_each_request_once() {
    if lacks(SERVER, "rabbitmq-server") {
        return;
    }
    let broker = Broker::start().await;
    each_end_is_published_once_it_has_a_queue(&broker).await;
    what_no_queue_is_bound_for_is_told_of_it_alone(&broker).await;
    who_dies_before_the_acknowledgement_makes_no_second_export(&broker).await;
}

async fn each_end_is_published_once_it_has_a_queue(broker: &Broker) {
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

/// Eight are published at once: what comes back is never taken for another's.
async fn what_no_queue_is_bound_for_is_told_of_it_alone(broker: &Broker) {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let operator = operator("exchange = \"other-exports\"\n");
    let service = start(&operator, &database, broker).service().await;
    // As if as many exports had ended while the exchange was missing: half of them of a consumer that no queue is bound for.
    let [routable, other] = [service.export("full", "a").await.0, service.export("full", "b").await.0];
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
    let counts = "select count(*) filter (where delivered_at is not null and e.consumer_id = 'a') || ' '
        || count(*) filter (where delivered_at is null and last_error like 'no queue is bound%' and e.consumer_id = 'b') || ' '
        || count(*) filter (where last_error is null and delivered_at is null)
        from cdc_export.deliveries d join exports e on e.id = d.job";
    // A broker that answers late on a busy machine costs a message an attempt, but never has it called one without a queue.
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

async fn who_dies_before_the_acknowledgement_makes_no_second_export(broker: &Broker) {
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
    for (id, consumer) in [("two", Some("other")), ("three", None)] {
        client.asks("requests", id, consumer, "").await;
        let [message] = client.takes("aside", 1).await.try_into().unwrap();
        let problem: Value = serde_json::from_str(&message.header("cdc-export-problem").unwrap()).unwrap();
        assert_eq!(problem["code"], "consumer_not_allowed", "{problem}");
    }
    service.stop().await;
    assert_eq!((client.waiting("requests").await, database.one::<i64>("select count(*) from exports").await), (0, 1));
}

#[tokio::test]
async fn the_address_has_to_be_there() {
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

/// Two that take from one queue would refuse each other's requests, by turns; and refused requests are no events.
#[tokio::test]
async fn two_blocks_of_one_broker_are_not_in_each_others_way() {
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
