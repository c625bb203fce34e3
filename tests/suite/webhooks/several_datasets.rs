//! Events of jobs of several datasets: one for each end, in the transaction of that end, with the exports that the
//! receiver may see.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Answer, OLD_SECRET, Receiver, SECRET};
use crate::catalog::{Catalog, export, post};
use crate::harness::{Database, Start, ends, until};
use crate::several_datasets::{TABLES, export_all, id, killed_by_a_job, of_exports, submit, tables};

fn with_webhooks(catalog: &Catalog, blocks: &[String]) {
    let datasets = std::fs::read_to_string(catalog.path()).unwrap();
    catalog.write(&format!("{datasets}{}", blocks.concat()));
}

fn start(catalog: &Catalog, database: &Database) -> Start {
    let start = catalog.start(database).with("HOOK_SECRET", format!("{SECRET} {OLD_SECRET}"));
    start.with("LEASE_SECONDS", 1)
}

/// Waits until a receiver got an event of a job. Returns the only one.
async fn hears(receiver: &Receiver, job: &Value) -> Value {
    // An event may come again, under the same id.
    let about = || {
        let about = receiver.heard().into_iter().filter(|heard| heard.event["data"]["jobId"] == job["jobId"]);
        about.map(|heard| (heard.id, heard.event)).collect::<BTreeMap<_, _>>()
    };
    until("an event", async || !about().is_empty()).await;
    let [event] = about().into_values().collect::<Vec<_>>().try_into().unwrap();
    event
}

async fn planned(database: &Database) -> i64 {
    database.one("select count(*) from cdc_export.deliveries").await
}

/// The data of an event, which is of this kind.
fn data_of<'e>(event: &'e Value, kind: &str) -> &'e Value {
    assert_eq!(event["type"], format!("cdc-export.export.{kind}.v1"));
    &event["data"]
}

#[tokio::test]
async fn each_end_of_a_job_is_one_event() {
    let (database, catalog) = tables().await;
    let (all, skips) = (Receiver::start().await, Receiver::start().await);
    with_webhooks(&catalog, &[all.block("all", ""), skips.block("skips", "events = [\"export.skipped\"]")]);
    let service = start(&catalog, &database).service().await;
    let full = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let event = hears(&all, &full).await;
    assert_eq!(event["subject"], "_datasets/a");
    assert_eq!(*data_of(&event, "completed"), full);

    // An end without a file.
    let skipped = export_all(&service, "delta", json!({ "datasets": "*", "skipEmpty": true })).await;
    let event = hears(&skips, &skipped).await;
    assert_eq!(*data_of(&event, "skipped"), skipped);
    assert_eq!((&skipped["status"], &skipped["skipped"]), (&json!("completed"), &json!(true)));

    // A job that is retried is a new one, and so is its event.
    database.run("truncate beta").await;
    let failed = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    let event = hears(&all, &failed).await;
    assert_eq!(*data_of(&event, "failed"), failed);
    let retry = format!("/exports/{}/retry", id(&failed));
    let retried: Value = post(&service, &retry, None, &json!({})).await.json().await.unwrap();
    let event = hears(&all, &retried).await;
    assert_eq!(event["data"]["retryOf"], failed["jobId"]);

    // One that runs and one that waits, both cancelled.
    let cancelling = start(&catalog, &database).sharing_output(&service).with("FAILPOINTS", "worker.opened=hold");
    service.stop().await;
    let service = cancelling.service().await;
    let positions = "select string_agg(dataset || ' ' || version, ',' order by dataset) from watermarks";
    let before = (service.files(), database.one::<String>(positions).await);
    let running = submit(&service, "full", json!({ "datasets": "*" })).await;
    let waiting = submit(&service, "full", json!({ "datasets": ["alpha", "beta"] })).await;
    service.reaches("worker.opened").await;
    let cancel = async |job: &Value| {
        let path = format!("/exports/{}/cancel", id(job));
        post(&service, &path, None, &json!({})).await.status()
    };
    assert_eq!((cancel(&waiting).await.as_u16(), cancel(&running).await.as_u16()), (202, 202));
    let event = hears(&all, &waiting).await;
    assert_eq!(of_exports(data_of(&event, "cancelled"), "dataset"), json!(["alpha", "beta"]));
    service.release("worker.opened").await;
    let event = hears(&all, &running).await;
    assert_eq!(data_of(&event, "cancelled")["status"], "cancelled");
    assert_eq!(cancel(&running).await, 200, "it was cancelled before");
    until("no file is left", async || service.files() == before.0).await;
    assert_eq!(database.one::<String>(positions).await, before.1);
    assert_eq!((planned(&database).await, skips.heard().len()), (6, 1));

    let listed = service.deliveries("?limit=200").await;
    let of_full = listed.iter().find(|it| it["jobId"] == full["jobId"]).unwrap();
    assert_eq!(of_full["event"], "export.completed");
}

#[tokio::test]
async fn a_receiver_sees_only_its_datasets_of_a_job() {
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
    let event = hears(&two, &full).await;
    assert_eq!(event["data"]["leftOut"], json!([]), "{event}");
    shows_none_of(&event, &["gamma"]);
    assert_eq!(planned(&database).await, 1, "the job has no dataset of `one`");

    catalog.command(&database, &["track", "gamma"]).await;
    let all = export_all(&service, "full", json!({ "datasets": "*" })).await;
    for (receiver, shown, hidden) in [(&two, 0..2_usize, &["gamma"][..]), (&one, 2..3, &["alpha", "beta"])] {
        let event = hears(receiver, &all).await;
        let data = data_of(&event, "completed");
        assert_eq!(data["exports"].as_array().unwrap()[..], all["exports"].as_array().unwrap()[shown.clone()]);
        assert_eq!((&data["rowsExported"], &data["progress"]), (&json!(10 * shown.len()), &json!(100)));
        shows_none_of(&event, hidden);
    }

    database.run("truncate beta").await;
    let failed = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    let event = hears(&two, &failed).await;
    assert_eq!(data_of(&event, "failed")["error"], failed["error"]);
    shows_none_of(&event, &["gamma"]);
    let event = hears(&one, &failed).await;
    let data = data_of(&event, "failed");
    assert_eq!([&data["status"], &data["error"]["code"]], ["failed", "other_dataset_failed"]);
    assert_eq!(data["error"]["dataset"], Value::Null);
    shows_none_of(&event, &["alpha", "beta"]);
    assert!(other.heard().is_empty());
}

#[tokio::test]
async fn a_job_that_ends_after_a_crash_is_one_event() {
    for (fault, lost, end, code) in [
        ("worker.opened=kill", &[][..], "failed", json!("attempts_exhausted")),
        ("worker.committed=kill", &[], "completed", Value::Null),
        ("worker.committed=kill", &["alpha", "gamma"], "failed", json!("file_lost")),
        ("publisher.named=kill", &[], "completed", Value::Null),
        ("publisher.named=kill@3", &[], "completed", Value::Null),
    ] {
        let (database, catalog) = tables().await;
        let receiver = Receiver::start().await;
        with_webhooks(&catalog, &[receiver.block("all", "")]);
        let start = || start(&catalog, &database).with("MAX_ATTEMPTS", 1);
        let mut doomed = start().with("FAILPOINTS", fault).service().await;
        let job = killed_by_a_job(&mut doomed, &database, "full", json!({ "datasets": "*" })).await;
        assert_eq!(planned(&database).await, 0, "{fault}");
        for dataset in lost {
            let staged = format!("select staged_name from cdc_export.exports where dataset = '{dataset}'");
            std::fs::remove_file(doomed.output().join(database.one::<String>(&staged).await)).unwrap();
        }
        let heir = start().sharing_output(&doomed).service().await;
        let job = heir.ended(&job).await;
        assert_eq!((data_of(&hears(&receiver, &job).await, end), &job["error"]["code"]), (&job, &code), "{fault}");
        assert_eq!(planned(&database).await, 1, "{fault}");
    }
}

/// Each of the two transactions has changed its export before the other one commits.
#[tokio::test]
async fn exports_that_are_published_at_the_same_moment_make_one_event_of_their_job() {
    let (database, catalog) = tables().await;
    let receiver = Receiver::start().await;
    with_webhooks(&catalog, &[receiver.block("all", "")]);
    let mut doomed = start(&catalog, &database).with("FAILPOINTS", "worker.committed=kill").service().await;
    let job = killed_by_a_job(&mut doomed, &database, "full", json!({ "datasets": ["alpha", "beta"] })).await;
    // A transaction that publishes an export waits for its commit, after it has looked for the end of the job.
    let trigger = "create function waits() returns trigger language plpgsql as $$
                   begin perform pg_advisory_xact_lock_shared(1); return null; end $$;
                   create constraint trigger waits after update of published_at on cdc_export.exports
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
    let job = heir.completes(&job).await;
    assert_eq!(*data_of(&hears(&receiver, &job).await, "completed"), job);
    assert_eq!(planned(&database).await, 1);
}

#[tokio::test]
async fn exports_of_a_job_are_given_up_in_any_order() {
    let (database, catalog) = tables().await;
    let receiver = Receiver::start().await;
    with_webhooks(&catalog, &[receiver.block("all", "events = [\"export.failed\"]")]);
    let mut doomed = start(&catalog, &database).with("FAILPOINTS", "worker.committed=kill").service().await;
    let job = killed_by_a_job(&mut doomed, &database, "full", json!({ "datasets": "*" })).await;
    // Nobody can reach the files, so nobody publishes them.
    let elsewhere = start(&catalog, &database).service().await;
    database.run("update cdc_export.exports set finished_at = finished_at - interval '1 minute'").await;
    for (dataset, events) in [("gamma", 0), ("alpha", 0), ("beta", 1)] {
        let answer = elsewhere.call("DELETE", &format!("/exports/{job}?dataset={dataset}"), &[]).await;
        assert_eq!((answer.status().as_u16(), planned(&database).await), (204, events), "{dataset}");
    }
    assert_eq!(data_of(&receiver.hears(1).await.remove(0).event, "failed")["jobId"], job);
    assert_eq!(planned(&database).await, 1);
}

/// A job with an undelivered event stays until that is delivered, dead or older than `RETAIN_UNACKED`.
#[tokio::test]
async fn retention_keeps_all_exports_of_a_job_with_an_undelivered_event() {
    let (database, catalog) = tables().await;
    let receiver = Receiver::start().await;
    receiver.answers((0..100).map(|_| Answer::Status(500)));
    with_webhooks(&catalog, &[receiver.block("all", "datasets = [\"gamma\"]\nconsumers = [\"a\"]")]);
    let service = start(&catalog, &database).service().await;
    for _ in 0..2 {
        export_all(&service, "full", json!({ "datasets": "*" })).await;
        export(&service, "full", "alpha", "b").await;
    }
    for dataset in TABLES {
        export(&service, "full", dataset, "a").await;
    }
    assert_eq!(planned(&database).await, 3, "for the exports of this consumer in this dataset");
    let left = async |condition: &str| {
        let count =
            format!("select count(*) from cdc_export.exports join cdc_export.jobs j on j.id = job where {condition}");
        database.one::<i64>(&count).await
    };
    let keeping = async || start(&catalog, &database).sharing_output(&service).with("RETAIN_JOBS", 1).service().await;
    let keeper = keeping().await;
    // A lane of another consumer shows that a round has ended.
    until("a round ends", async || left("j.consumer_id = 'b'").await == 1).await;
    assert_eq!(left("datasets is not null").await, 6);
    keeper.stop().await;
    let changes = "update cdc_export.deliveries set created_at = created_at - interval '31 days'
                   where job = (select job from cdc_export.deliveries order by job limit 1)";
    database.run(changes).await;
    let keeper = keeping().await;
    until("the job that waited for a month goes", async || left("datasets is not null").await == 3).await;
    keeper.stop().await;
    database.run("update cdc_export.deliveries set delivered_at = clock_timestamp(), run_at = 'infinity'").await;
    let _keeper = keeping().await;
    until("what is told goes", async || left("datasets is not null").await == 0).await;
}
