//! Events of batches: one for each end, in the transaction of that end, with the members that the receiver may see.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Answer, OLD_SECRET, Receiver, SECRET};
use crate::batches::{TABLES, batch, ended, export_all, tables};
use crate::catalog::{Catalog, export, post};
use crate::harness::{Database, Service, Start, ends, until};

/// Adds webhooks to the operator's file.
fn with_webhooks(catalog: &Catalog, blocks: &[String]) {
    let datasets = std::fs::read_to_string(catalog.path()).unwrap();
    catalog.write(&format!("{datasets}{}", blocks.concat()));
}

fn start(catalog: &Catalog, database: &Database) -> Start {
    let start = catalog.start(database).with("HOOK_SECRET", format!("{SECRET} {OLD_SECRET}"));
    start.with("LEASE_SECONDS", 1)
}

/// Waits until a receiver got an event about a batch or its exports. Returns the only one.
async fn hears(receiver: &Receiver, id: &Value) -> Value {
    // An event may come again, under the same id.
    let about = || {
        let about = receiver.heard().into_iter().filter(|heard| heard.event["data"]["batchId"] == *id);
        about.map(|heard| (heard.id, heard.event)).collect::<BTreeMap<_, _>>()
    };
    until("an event", async || !about().is_empty()).await;
    let [event] = about().into_values().collect::<Vec<_>>().try_into().unwrap();
    event
}

/// Returns the number of planned events.
async fn planned(database: &Database) -> i64 {
    database.one("select count(*) from cdc_export.deliveries").await
}

async fn get(service: &Service, id: &Value) -> Value {
    service.ask("GET", &format!("/batches/{}", id.as_str().unwrap()), &[]).await.json().await.unwrap()
}

/// The data of an event, which is of this kind.
fn data_of<'e>(event: &'e Value, kind: &str) -> &'e Value {
    assert_eq!(event["type"], format!("cdc-export.export.{kind}.v1"));
    &event["data"]
}

#[tokio::test]
async fn each_end_of_a_batch_is_one_event() {
    let (database, catalog) = tables().await;
    let (all, skips) = (Receiver::start().await, Receiver::start().await);
    with_webhooks(&catalog, &[all.block("all", ""), skips.block("skips", "events = [\"export.skipped\"]")]);
    let service = start(&catalog, &database).service().await;
    let full = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let event = hears(&all, &full["batchId"]).await;
    assert_eq!(event["subject"], "_batch/a");
    assert_eq!(*data_of(&event, "completed"), get(&service, &full["batchId"]).await);

    // An end without a file.
    let skipped = export_all(&service, "delta", json!({ "datasets": "*", "skipEmpty": true })).await;
    let event = hears(&skips, &skipped["batchId"]).await;
    assert_eq!(data_of(&event, "skipped")["status"], "completed");

    // A batch that is retried is a new one, and so is its event.
    database.run("truncate beta").await;
    let failed = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    let event = hears(&all, &failed["batchId"]).await;
    assert_eq!(*data_of(&event, "failed"), get(&service, &failed["batchId"]).await);
    assert_eq!(event["data"]["error"]["member"], "beta");
    let path = format!("/batches/{}/retry", failed["batchId"].as_str().unwrap());
    let retried: Value = post(&service, &path, None, &json!({})).await.json().await.unwrap();
    let event = hears(&all, &retried["batchId"]).await;
    assert_eq!(event["data"]["retryOf"], failed["batchId"]);

    // One that runs and one that waits, both cancelled.
    service.stop().await;
    let service = start(&catalog, &database).with("FAILPOINTS", "worker.opened=hold").service().await;
    let running = batch(&service, "full", json!({ "datasets": "*" })).await;
    let waiting = batch(&service, "full", json!({ "datasets": ["alpha", "beta"] })).await;
    service.reaches("worker.opened").await;
    for batch in [&waiting, &running] {
        let path = format!("/batches/{}/cancel", batch["batchId"].as_str().unwrap());
        assert_eq!(post(&service, &path, None, &json!({})).await.status(), 202);
    }
    let event = hears(&all, &waiting["batchId"]).await;
    assert_eq!(data_of(&event, "cancelled")["jobs"].as_array().unwrap().len(), 2);
    service.release("worker.opened").await;
    let event = hears(&all, &running["batchId"]).await;
    assert_eq!(data_of(&event, "cancelled")["status"], "cancelled");
    assert_eq!((planned(&database).await, skips.heard().len()), (6, 1));

    let listed: Value = service.call("GET", "/deliveries?limit=200", &[]).await.json().await.unwrap();
    let listed = listed["items"].as_array().unwrap();
    let of_full = listed.iter().find(|it| it["jobId"] == full["batchId"]).unwrap();
    assert_eq!((&of_full["event"], &of_full["batchId"]), (&json!("export.completed"), &full["batchId"]));
    let heard = all.heard().len();
    let path = format!("/deliveries/{}/redeliver", of_full["deliveryId"].as_str().unwrap());
    assert_eq!(service.call("POST", &path, &[]).await.status(), 202);
    all.hears(heard + 1).await;
}

#[tokio::test]
async fn a_receiver_sees_only_its_datasets_of_a_batch() {
    let (database, catalog) = tables().await;
    let [two, one, other] = [Receiver::start().await, Receiver::start().await, Receiver::start().await];
    let blocks = [
        two.block("two", "datasets = [\"alpha\", \"beta\"]"),
        one.block("one", "datasets = [\"gamma\"]"),
        other.block("other", "consumers = [\"b\"]"),
    ];
    with_webhooks(&catalog, &blocks);
    let shows_none_of = |event: &Value, hidden: &[&str]| {
        let text = event.to_string();
        assert!(hidden.iter().all(|name| !text.contains(name)), "{text}");
    };
    ends(catalog.command(&database, &["untrack", "gamma"]).await, 0, "");
    let service = start(&catalog, &database).service().await;
    // `gamma` isn't ready, and this receiver may not know of it.
    let full = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    assert_eq!(full["leftOut"][0]["dataset"], "gamma");
    let event = hears(&two, &full["batchId"]).await;
    assert_eq!(event["data"]["leftOut"], json!([]), "{event}");
    shows_none_of(&event, &["gamma"]);
    assert_eq!(planned(&database).await, 1, "no dataset of `one` is in the batch");

    catalog.command(&database, &["track", "gamma"]).await;
    let all = export_all(&service, "full", json!({ "datasets": "*" })).await;
    for (receiver, members, hidden) in [(&two, 0..2_usize, &["gamma"][..]), (&one, 2..3, &["alpha", "beta"])] {
        let event = hears(receiver, &all["batchId"]).await;
        let data = data_of(&event, "completed");
        assert_eq!(data["jobs"].as_array().unwrap()[..], all["jobs"].as_array().unwrap()[members.clone()]);
        assert_eq!((&data["rowsExported"], &data["progress"]), (&json!(10 * members.len()), &json!(100)));
        shows_none_of(&event, hidden);
    }

    database.run("truncate beta").await;
    let failed = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    let event = hears(&two, &failed["batchId"]).await;
    assert_eq!(data_of(&event, "failed")["error"], failed["error"]);
    shows_none_of(&event, &["gamma"]);
    let event = hears(&one, &failed["batchId"]).await;
    let (data, code) = (data_of(&event, "failed"), "batch_member_failed");
    assert_eq!((&data["status"], &data["error"]["code"]), (&json!("failed"), &json!(code)));
    assert_eq!((&data["error"]["member"], &data["jobs"][0]["error"]["code"]), (&Value::Null, &json!(code)));
    shows_none_of(&event, &["alpha", "beta"]);
    assert!(other.heard().is_empty());
}

#[tokio::test]
async fn a_batch_that_ends_after_a_crash_is_one_event() {
    for fault in ["worker.committed=kill", "publisher.named=kill", "publisher.named=kill@3"] {
        let (database, catalog) = tables().await;
        let receiver = Receiver::start().await;
        with_webhooks(&catalog, &[receiver.block("all", "")]);
        let mut doomed = start(&catalog, &database).with("FAILPOINTS", fault).service().await;
        let submitted = batch(&doomed, "full", json!({ "datasets": "*" })).await;
        doomed.dies().await;
        assert_eq!(planned(&database).await, 0, "{fault}");
        let _heir = start(&catalog, &database).sharing_output(&doomed).service().await;
        let event = hears(&receiver, &submitted["batchId"]).await;
        assert_eq!(event["type"], "cdc-export.export.completed.v1", "{fault}");
        assert_eq!(planned(&database).await, 1, "{fault}");
    }
}

#[tokio::test]
async fn a_batch_whose_workers_vanish_or_whose_file_is_lost_fails_with_one_event() {
    let (database, catalog) = tables().await;
    let receiver = Receiver::start().await;
    with_webhooks(&catalog, &[receiver.block("all", "")]);
    let start = || start(&catalog, &database).with("MAX_ATTEMPTS", 1);
    let mut doomed = start().with("FAILPOINTS", "worker.opened=kill").service().await;
    let vanished = batch(&doomed, "full", json!({ "datasets": "*" })).await;
    doomed.dies().await;
    let mut doomed = start().sharing_output(&doomed).with("FAILPOINTS", "worker.committed=kill").service().await;
    let event = hears(&receiver, &vanished["batchId"]).await;
    assert_eq!(data_of(&event, "failed")["error"]["code"], "attempts_exhausted");
    let lost = batch(&doomed, "full", json!({ "datasets": "*" })).await;
    doomed.dies().await;
    // The first and the last member.
    let names: Vec<String> =
        sqlx::query_scalar("select staged_name from exports where batch_id = $1::uuid and dataset <> 'beta'")
            .bind(lost["batchId"].as_str().unwrap())
            .fetch_all(&database.pool)
            .await
            .unwrap();
    names.iter().for_each(|name| std::fs::remove_file(doomed.output().join(name)).unwrap());
    let heir = start().sharing_output(&doomed).service().await;
    let event = hears(&receiver, &lost["batchId"]).await;
    assert_eq!(data_of(&event, "failed")["error"]["code"], "file_lost");
    assert_eq!(planned(&database).await, 2);
    assert_eq!(ended(&heir, &lost["batchId"]).await, event["data"]);
}

/// Each of the two transactions has changed its export before the other one commits.
#[tokio::test]
async fn exports_that_are_published_at_the_same_moment_make_one_event_of_their_batch() {
    let (database, catalog) = tables().await;
    let receiver = Receiver::start().await;
    with_webhooks(&catalog, &[receiver.block("all", "")]);
    let mut doomed = start(&catalog, &database).with("FAILPOINTS", "worker.committed=kill").service().await;
    let submitted = batch(&doomed, "full", json!({ "datasets": ["alpha", "beta"] })).await;
    doomed.dies().await;
    // A transaction that publishes an export waits for its commit, after it has looked for the end of the batch.
    let trigger = "create function waits() returns trigger language plpgsql as $$
                   begin perform pg_advisory_xact_lock_shared(1); return null; end $$;
                   create constraint trigger waits after update of published_at on exports
                   deferrable initially deferred for each row execute function waits()";
    database.run(trigger).await;
    let held = database.open("select pg_advisory_xact_lock(1)").await;
    let heir = start(&catalog, &database).with("LEASE_SECONDS", 30).with("WORKERS", 4).sharing_output(&doomed);
    let heir = heir.service().await;
    // One publisher waits for this transaction, and the other one for the first publisher or for this transaction, too.
    let waiting = "select count(*) from pg_stat_activity
                   where datname = current_database() and wait_event_type = 'Lock'";
    until("two publishers wait", async || database.one::<i64>(waiting).await == 2).await;
    held.rollback().await.unwrap();
    let event = hears(&receiver, &submitted["batchId"]).await;
    assert_eq!(*data_of(&event, "completed"), ended(&heir, &submitted["batchId"]).await);
    assert_eq!(planned(&database).await, 1);
}

#[tokio::test]
async fn exports_of_a_batch_are_given_up_in_any_order() {
    let (database, catalog) = tables().await;
    let receiver = Receiver::start().await;
    with_webhooks(&catalog, &[receiver.block("all", "events = [\"export.failed\"]")]);
    let mut doomed = start(&catalog, &database).with("FAILPOINTS", "worker.committed=kill").service().await;
    let submitted = batch(&doomed, "full", json!({ "datasets": "*" })).await;
    doomed.dies().await;
    // Nobody can reach the files, so nobody publishes them.
    let elsewhere = start(&catalog, &database).service().await;
    database.run("update exports set finished_at = finished_at - interval '1 minute'").await;
    let give_up = async |at: usize| {
        let path = format!("/exports/{}", submitted["jobs"][at]["jobId"].as_str().unwrap());
        elsewhere.call("DELETE", &path, &[]).await
    };
    for (at, events) in [(2, 0), (0, 0), (1, 1)] {
        assert_eq!((give_up(at).await.status(), planned(&database).await), (reqwest::StatusCode::NO_CONTENT, events));
    }
    let event = receiver.hears(1).await.remove(0).event;
    assert_eq!(data_of(&event, "failed")["batchId"], submitted["batchId"]);
    assert_eq!(planned(&database).await, 1);
}

#[tokio::test]
async fn retention_keeps_all_members_of_a_batch_with_an_undelivered_event() {
    let (database, catalog) = tables().await;
    let receiver = Receiver::start().await;
    receiver.answers((0..100).map(|_| Answer::Status(500)));
    with_webhooks(&catalog, &[receiver.block("all", "datasets = [\"gamma\"]\nconsumers = [\"a\"]")]);
    let service = start(&catalog, &database).service().await;
    export_all(&service, "full", json!({ "datasets": "*" })).await;
    for dataset in TABLES {
        export(&service, "full", dataset, "a").await;
    }
    let left =
        async |condition: &str| database.one::<i64>(&format!("select count(*) from exports where {condition}")).await;
    let keeping = || start(&catalog, &database).sharing_output(&service).with("RETAIN_JOBS", 1);
    // The lanes of another consumer show that a round has ended.
    for _ in 0..2 {
        export(&service, "full", "alpha", "b").await;
    }
    let keeper = keeping().service().await;
    until("a round ends", async || left("consumer_id = 'b'").await == 1).await;
    assert_eq!(left("batch_id is not null").await, 3);
    keeper.stop().await;
    database.run("update cdc_export.deliveries set delivered_at = clock_timestamp(), run_at = 'infinity'").await;
    let _keeper = keeping().service().await;
    until("what is told goes", async || left("batch_id is not null").await == 0).await;
}
