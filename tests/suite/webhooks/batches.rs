//! Events of batches: one for each end, in the transaction of that end, for receivers that may see all members.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{OLD_SECRET, Receiver, SECRET};
use crate::batches::{batch, ended, export_all, tables};
use crate::catalog::{Catalog, post};
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

/// Returns the types of the events that a receiver got about a batch and its exports.
fn types_about(receiver: &Receiver, id: &Value) -> Vec<String> {
    let heard = receiver.heard();
    let about = heard.iter().filter(|heard| heard.event["data"]["batchId"] == *id);
    // An event may come again, under the same id.
    let by_id: BTreeMap<_, _> =
        about.map(|heard| (heard.id.clone(), heard.event["type"].as_str().unwrap().to_owned())).collect();
    let mut types: Vec<_> = by_id.into_values().collect();
    types.sort();
    types
}

/// Waits until a receiver got this number of events about a batch. Returns that of the batch.
async fn hears(receiver: &Receiver, id: &Value, events: usize) -> Value {
    until("the events", async || types_about(receiver, id).len() >= events).await;
    assert_eq!(types_about(receiver, id).len(), events, "{:?}", types_about(receiver, id));
    let heard = receiver.heard();
    let of_batch = heard.iter().find(|it| it.event["data"]["batchId"] == *id && it.event["data"]["jobs"].is_array());
    of_batch.expect("an event of the batch").event.clone()
}

/// Returns the number of planned events of batches.
async fn planned(database: &Database) -> i64 {
    database.one("select count(*) from cdc_export.deliveries where is_of_batch").await
}

async fn get(service: &Service, id: &Value) -> Value {
    service.ask("GET", &format!("/batches/{}", id.as_str().unwrap()), &[]).await.json().await.unwrap()
}

/// The data of an event, which is of this kind.
fn data_of<'e>(event: &'e Value, kind: &str) -> &'e Value {
    assert_eq!(event["type"], format!("cdc-export.batch.{kind}.v1"));
    &event["data"]
}

#[tokio::test]
async fn each_end_of_a_batch_is_one_event() {
    let (database, catalog) = tables().await;
    let (all, skips) = (Receiver::start().await, Receiver::start().await);
    with_webhooks(&catalog, &[all.block("all", ""), skips.block("skips", "events = [\"batch.skipped\"]")]);
    let service = start(&catalog, &database).service().await;
    let full = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let event = hears(&all, &full["batchId"], 4).await;
    assert_eq!((&event["type"], &event["subject"]), (&json!("cdc-export.batch.completed.v1"), &json!("_batch/a")));
    assert_eq!(event["data"], get(&service, &full["batchId"]).await);
    let of_exports = vec!["cdc-export.export.completed.v1"; 3];
    assert_eq!(types_about(&all, &full["batchId"])[1..], of_exports);

    // An end without a file.
    let skipped = export_all(&service, "delta", json!({ "datasets": "*", "skipEmpty": true })).await;
    let event = hears(&skips, &skipped["batchId"], 1).await;
    assert_eq!(data_of(&event, "skipped")["status"], "completed");

    // A batch that is retried is a new one, and so is its event.
    database.run("truncate beta").await;
    let failed = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    let event = hears(&all, &failed["batchId"], 4).await;
    assert_eq!(data_of(&event, "failed")["error"]["member"], "beta");
    let path = format!("/batches/{}/retry", failed["batchId"].as_str().unwrap());
    let retried: Value = post(&service, &path, None, &json!({})).await.json().await.unwrap();
    let event = hears(&all, &retried["batchId"], 4).await;
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
    let event = hears(&all, &waiting["batchId"], 3).await;
    assert_eq!(event["type"], "cdc-export.batch.cancelled.v1");
    service.release("worker.opened").await;
    let event = hears(&all, &running["batchId"], 4).await;
    assert_eq!(data_of(&event, "cancelled")["status"], "cancelled");
    assert_eq!((planned(&database).await, skips.heard().len()), (6, 1));

    // The list of deliveries tells a batch from its first export.
    let listed: Value = service.call("GET", "/deliveries?limit=200", &[]).await.json().await.unwrap();
    let listed = listed["items"].as_array().unwrap();
    let of_first = listed.iter().filter(|it| it["jobId"] == full["batchId"]);
    let mut of_first: Vec<_> = of_first.map(|it| (it["event"].clone(), it["batchId"].clone())).collect();
    of_first.sort_by_key(|(event, _)| event.to_string());
    let expected = [(json!("batch.completed"), full["batchId"].clone()), (json!("export.completed"), Value::Null)];
    assert_eq!(of_first, expected);
    let again = listed.iter().find(|it| it["event"] == "batch.completed").unwrap()["deliveryId"].as_str().unwrap();
    let heard = all.heard().len();
    let path = format!("/deliveries/{again}/redeliver");
    assert_eq!(service.call("POST", &path, &[]).await.status(), 202);
    all.hears(heard + 1).await;
}

#[tokio::test]
async fn a_receiver_hears_of_a_batch_only_if_it_may_see_all_members() {
    let (database, catalog) = tables().await;
    let (some, other) = (Receiver::start().await, Receiver::start().await);
    let blocks = [some.block("some", "datasets = [\"alpha\", \"beta\"]"), other.block("other", "consumers = [\"b\"]")];
    with_webhooks(&catalog, &blocks);
    ends(catalog.command(&database, &["untrack", "gamma"]).await, 0, "");
    let service = start(&catalog, &database).service().await;
    // `gamma` isn't ready, and this receiver may not know of it.
    let full = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    assert_eq!(full["leftOut"][0]["dataset"], "gamma");
    let event = hears(&some, &full["batchId"], 3).await;
    assert_eq!(event["data"]["leftOut"], json!([]), "{event}");
    assert!(!event.to_string().contains("gamma"), "{event}");
    catalog.command(&database, &["track", "gamma"]).await;
    let all = export_all(&service, "full", json!({ "datasets": "*" })).await;
    until("two exports", async || types_about(&some, &all["batchId"]).len() == 2).await;
    assert_eq!(planned(&database).await, 1);
    assert!(other.heard().is_empty());
}

#[tokio::test]
async fn a_batch_that_ends_after_a_crash_is_one_event() {
    for fault in ["worker.committed=kill", "publisher.named=kill", "publisher.named=kill@3"] {
        let (database, catalog) = tables().await;
        let receiver = Receiver::start().await;
        // A delivery that the killed process had claimed waits for a minute. So this receiver gets the batch's event
        // alone.
        with_webhooks(&catalog, &[receiver.block("all", "events = [\"batch.completed\"]")]);
        let mut doomed = start(&catalog, &database).with("FAILPOINTS", fault).service().await;
        let submitted = batch(&doomed, "full", json!({ "datasets": "*" })).await;
        doomed.dies().await;
        assert_eq!(planned(&database).await, 0, "{fault}");
        let _heir = start(&catalog, &database).sharing_output(&doomed).service().await;
        let event = hears(&receiver, &submitted["batchId"], 1).await;
        assert_eq!(event["type"], "cdc-export.batch.completed.v1", "{fault}");
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
    let event = hears(&receiver, &vanished["batchId"], 4).await;
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
    let event = hears(&receiver, &lost["batchId"], 4).await;
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
    // This transaction records the deliveries of both exports. A publisher that records one of them, too, waits for its
    // end. Without checks of foreign keys, it locks no row of an export.
    let deliveries = "set local session_replication_role = replica;
                      insert into cdc_export.deliveries (id, job, endpoint, event)
                      select gen_random_uuid(), id, 'all', 'completed' from exports";
    let held = database.open(deliveries).await;
    let heir = start(&catalog, &database).with("LEASE_SECONDS", 30).with("WORKERS", 4).sharing_output(&doomed);
    let heir = heir.service().await;
    // One publisher waits for that transaction, and the other one for the first or for that transaction, too.
    let waiting = "select count(*) from pg_stat_activity
                   where datname = current_database() and wait_event_type = 'Lock'";
    until("two publishers wait", async || database.one::<i64>(waiting).await == 2).await;
    held.rollback().await.unwrap();
    let event = hears(&receiver, &submitted["batchId"], 3).await;
    assert_eq!(*data_of(&event, "completed"), ended(&heir, &submitted["batchId"]).await);
    assert_eq!(planned(&database).await, 1);
}

#[tokio::test]
async fn exports_of_a_batch_are_given_up_in_any_order() {
    let (database, catalog) = tables().await;
    let receiver = Receiver::start().await;
    with_webhooks(&catalog, &[receiver.block("all", "events = [\"batch.failed\"]")]);
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
