//! Requests that can't be met, or that come back: they hold up nobody else's.

use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ExchangeKind};
use serde_json::Value;

use crate::amqp::broker::{Broker, Client, Message, SERVER};
use crate::amqp::operator::{ASKED, operator, start};
use crate::catalog::Catalog;
use crate::harness::{Database, Service, eventually, lacks};

/// These harm no broker, so they have one together.
#[tokio::test]
async fn what_cannot_be_met_holds_up_nobody_and_is_not_lost() {
    if lacks(SERVER, "rabbitmq-server") {
        return;
    }
    let broker = Broker::start().await;
    requests_that_wait_hold_up_nobody(&broker).await;
    a_request_that_comes_back_slows_down(&broker).await;
    headers_are_kept_as_far_as_a_frame_has_room(&broker).await;
    a_stream_is_no_queue_of_requests(&broker).await;
    what_no_library_would_send_stops_nothing(&broker).await;
}

async fn complaint(service: &Service, of: &str) -> Value {
    let complaints = || service.events("queue_failed").into_iter();
    eventually(of, || async { complaints().find(|it| it["error"].as_str().unwrap().contains(of)) }).await
}

fn problem(of: &Message) -> Value {
    serde_json::from_str(&of.header("cdc-export-problem").unwrap()).unwrap()
}

async fn waiting(service: &Service) -> Option<String> {
    let metrics = service.call("GET", "/metrics", &[]).await.text().await.unwrap();
    let series = "cdc_export_amqp_requests_waiting{endpoint=\"rabbit\"} ";
    metrics.lines().find_map(|line| line.strip_prefix(series)).map(str::to_owned)
}

/// Of each kind more than are tried at a time: of a consumer that is busy, refused with nobody to take them, about a
/// table that doesn't fit.
async fn requests_that_wait_hold_up_nobody(broker: &Broker) {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    database.run("create table other (id int primary key, gone int)").await;
    let other = "[[dataset]]\nname = \"other\"\ntable = \"other\"\ncolumns = [\"id\", \"gone\"]\n";
    let catalog = operator(ASKED);
    let text = std::fs::read_to_string(catalog.path()).unwrap();
    catalog.write(&format!("{other}{text}"));
    let client = broker.client().await;
    client.exchange("refused").await;
    client.queue("requests", "", "", FieldTable::default()).await;
    let service = start(&catalog, &database, broker).service().await;
    database.run("alter table other drop column gone").await;
    let held = database.hold_exports().await;

    for number in 0..10 {
        client.asks("requests", &format!("mismatch{number}"), None, r#"{"dataset": "other", "limit": 1}"#).await;
        client.asks("requests", &format!("bad{number}"), Some("bad"), "[]").await;
    }
    for number in 0..30 {
        client.asks("requests", &format!("busy{number}"), Some("busy"), "").await;
    }
    for number in 0..3 {
        client.asks("requests", &format!("other{number}"), Some("patient"), "").await;
    }
    let jobs =
        async |of: &str| database.one::<i64>(&format!("select count(*) from exports where consumer_id = '{of}'")).await;
    eventually("the other's jobs", || async { (jobs("patient").await == 3).then_some(()) }).await;
    complaint(&service, "too_many_open_jobs").await;
    complaint(&service, "no queue is bound to the exchange refused").await;
    eventually("all of them", || async { (waiting(&service).await.as_deref() == Some("30")).then_some(()) }).await;

    // Nothing is lost: what doesn't fit is laid aside after five tries, what is refused as soon as there is a queue,
    // what waits is made.
    client.queue("aside", "refused", "#", FieldTable::default()).await;
    let aside = client.takes("aside", 20).await;
    let of = |start: &str| aside.iter().filter(|it| it.id.starts_with(start)).map(problem).collect::<Vec<_>>();
    let (mismatched, bad) = (of("mismatch"), of("bad"));
    assert!(mismatched.len() == 10 && mismatched.iter().all(|it| it["code"] == "dataset_mismatch"), "{mismatched:?}");
    assert!(bad.len() == 10 && bad.iter().all(|it| it["code"] == "invalid_body"), "{bad:?}");
    held.rollback().await.unwrap();
    eventually("the busy one's jobs", || async { (jobs("busy").await == 30).then_some(()) }).await;
    eventually("nothing that waits", || async { (waiting(&service).await.as_deref() == Some("0")).then_some(()) })
        .await;
    service.stop().await;
    assert_eq!((client.waiting("requests").await, jobs("bad").await), (0, 0));
    client.takes_none("aside").await;
}

async fn a_request_that_comes_back_slows_down(broker: &Broker) {
    let database = Database::new().await;
    let client = broker.client().await;
    client.exchange("round").await;
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    client.queue("round", "round", "#", quorum).await;
    let catalog = operator("queue = \"round\"\ndead_letter_exchange = \"round\"\n");
    let service = start(&catalog, &database, broker).service().await;
    for number in 0..20 {
        client.asks("round", &format!("bad{number}"), Some("search"), "[]").await;
    }
    let told = complaint(&service, "came back to its queue").await;
    assert!(told["error"].as_str().unwrap().contains("the exchange round"), "{told}");
    client.asks("round", "good", Some("search"), "").await;
    eventually("a job", || async { (database.one::<i64>("select count(*) from exports").await == 1).then_some(()) })
        .await;
    eventually("all of them", || async { (waiting(&service).await.as_deref() == Some("20")).then_some(()) }).await;
    let said = service.events("queue_failed").iter().filter(|it| it["error"].to_string().contains("came back")).count();
    assert_eq!((said, service.events("request_refused").len()), (1, 20), "each was refused once");
    service.stop().await;
    eventually("they are the broker's", || async { (client.waiting("round").await == 20).then_some(()) }).await;
}

async fn headers_are_kept_as_far_as_a_frame_has_room(broker: &Broker) {
    let (database, client) = (Database::new().await, broker.client().await);
    let catalog: Catalog = operator("queue = \"headers\"\ndead_letter_exchange = \"of-headers\"\n");
    client.exchange("of-headers").await;
    client.queue("headers", "", "", FieldTable::default()).await;
    client.queue("copied", "", "", FieldTable::default()).await;
    client.queue("aside-of-headers", "of-headers", "#", FieldTable::default()).await;
    let service = start(&catalog, &database, broker).service().await;
    let text = |length: usize| AMQPValue::LongString("x".repeat(length).into());
    let of = |large: usize| {
        let mut headers = FieldTable::default();
        headers.insert("x-consumer-id".into(), AMQPValue::LongString("search".into()));
        headers.insert("a-large".into(), text(large));
        headers.insert("trace".into(), text(20_000));
        headers.insert("CC".into(), AMQPValue::FieldArray(vec![AMQPValue::LongString("copied".into())].into()));
        BasicProperties::default().with_message_id("bad".into()).with_priority(7).with_headers(headers)
    };
    for (large, is_kept) in [(80_000, true), (109_000, false)] {
        client.publishes("headers", of(large), "[]").await;
        let message = one_aside(&client).await;
        assert_eq!(problem(&message)["code"], "invalid_body");
        assert_eq!(message.header("x-consumer-id").as_deref(), Some("search"));
        assert_eq!(message.header("trace").map(|text| text.len()), Some(20_000));
        assert_eq!(message.header("a-large").map(|text| text.len()), is_kept.then_some(large));
        let headers = message.properties.headers().clone().unwrap();
        assert!(!headers.contains_key("CC"), "it would be routed there again");
        assert_eq!(*message.properties.priority(), Some(7));
    }
    service.stop().await;
    assert_eq!((client.waiting("copied").await, client.waiting("headers").await), (2, 0));
}

async fn one_aside(client: &Client) -> Message {
    client.takes("aside-of-headers", 1).await.pop().unwrap()
}

/// What it brings can't be acknowledged, and what it has had is not brought.
async fn a_stream_is_no_queue_of_requests(broker: &Broker) {
    let (database, client) = (Database::new().await, broker.client().await);
    let mut stream = FieldTable::default();
    stream.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    client.queue("stream", "", "", stream).await;
    client.exchange("of-stream").await;
    let catalog = operator("queue = \"stream\"\ndead_letter_exchange = \"of-stream\"\n");
    let service = start(&catalog, &database, broker).service().await;
    complaint(&service, "it is a stream").await;
    client.asks("stream", "one", Some("search"), "").await;
    // One that is no stream is taken from by then.
    assert!(service.events("queue_opened").is_empty());
    service.stop().await;
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 0);
}

/// A broker takes short texts that aren't UTF-8 from any client, and headers as deep as a frame is long.
async fn what_no_library_would_send_stops_nothing(broker: &Broker) {
    let (database, client) = (Database::new().await, broker.client().await);
    database.add_users(1, 5).await;
    client.exchange("of-odd").await;
    client.queue("aside-of-odd", "of-odd", "#", FieldTable::default()).await;
    client.queue("odd", "", "", FieldTable::default()).await;
    let options = ExchangeDeclareOptions::default();
    let declared = client.channel.exchange_declare("fan".into(), ExchangeKind::Fanout, options, FieldTable::default());
    declared.await.unwrap();
    client.bind("odd", "fan", "").await;
    let catalog = operator("queue = \"odd\"\ndead_letter_exchange = \"of-odd\"\n");
    let service = start(&catalog, &database, broker).service().await;

    let odd = broker.client_with(&[(b"ILLEGIBLE", b"ill\xe9gible"), (b"nestedx", b"nestedA")]).await;
    let of = |id: &str| {
        let mut headers = FieldTable::default();
        headers.insert("X-Consumer-ID".into(), AMQPValue::LongString(id.into()));
        BasicProperties::default().with_headers(headers)
    };
    let with_id = |id: &str| of(id).with_message_id(id.into());
    for properties in [
        of("bad-id").with_message_id("ILLEGIBLE".into()),
        with_id("bad-type").with_content_type("ILLEGIBLE".into()),
        with_id("app").with_app_id("ILLEGIBLE".into()),
    ] {
        odd.publishes("odd", properties, "{}").await;
    }
    let by_fan = odd.channel.basic_publish(
        "fan".into(),
        "ILLEGIBLE".into(),
        BasicPublishOptions::default(),
        b"",
        with_id("fan"),
    );
    by_fan.await.unwrap().await.unwrap();
    let nested =
        (0..20_000u32).fold(Vec::new(), |inner, depth| [&b"A"[..], &(5 * depth).to_be_bytes(), &inner].concat());
    let mut headers = of("").headers().clone().unwrap();
    headers.insert("X-Consumer-ID".into(), AMQPValue::LongString("deep".into()));
    headers.insert("nested".into(), AMQPValue::ByteArray(nested.into()));
    odd.publishes("odd", with_id("deep").with_headers(headers), "").await;
    odd.publishes("odd", with_id("good"), "").await;

    let aside = client.takes("aside-of-odd", 2).await;
    let mut refused =
        Vec::from_iter(aside.iter().map(|it| (it.header("X-Consumer-ID").unwrap(), problem(it)["code"].clone())));
    refused.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(
        serde_json::to_value(refused).unwrap(),
        serde_json::json!([["bad-id", "idempotency_key_invalid"], ["bad-type", "unsupported_media_type"]])
    );
    let asked = "select string_agg(consumer_id, ' ' order by consumer_id) from exports where status = 'completed'";
    let all = Some("app deep fan good".to_owned());
    eventually("the others' jobs", async || (database.one::<Option<String>>(asked).await == all).then_some(())).await;
    assert!(service.events("queue_failed").is_empty(), "{:?}", service.events("queue_failed"));
    service.stop().await;
    client.takes_none("aside-of-odd").await;
}
