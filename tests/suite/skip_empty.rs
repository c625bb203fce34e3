//! `skipEmpty`: an incremental export or a delta that finds nothing makes no file, and the position moves all the same.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::catalog::{Catalog, Replica, ended, post, submit};
use crate::harness::{Database, Service, eventually, refusal};

const ITEMS: &str = "[[dataset]]\nname = \"items\"\ntable = \"items\"\n";

/// Returns a database with the tracked table `items` of five rows, and its operator's file with further lines.
async fn items(more: &str) -> (Database, Catalog) {
    let rows =
        "create table items (k int primary key, n int); insert into items select n, 1 from generate_series(1, 5) n";
    let database = Database::new_with(rows).await;
    let catalog = Catalog::of(&format!("{ITEMS}{more}"));
    catalog.track(&database, "items").await;
    (database, catalog)
}

async fn export(service: &Service, export_type: &str, skip_empty: impl Into<Option<bool>>) -> Value {
    let mut body = json!({ "dataset": "items" });
    if let Some(skip_empty) = skip_empty.into() {
        body["skipEmpty"] = skip_empty.into();
    }
    let job = ended(service, &format!("/exports/{export_type}"), Some("a"), body).await;
    assert_eq!(job["status"], "completed", "{job}");
    job
}

async fn listed(service: &Service, status: &str) -> Vec<Value> {
    let list: Value = service.ask("GET", &format!("/exports?status={status}"), &[]).await.json().await.unwrap();
    list["items"].as_array().unwrap().iter().map(|job| job["jobId"].clone()).collect()
}

#[tokio::test]
async fn a_skipped_export_has_no_file_and_no_place_in_the_chain() {
    let (database, catalog) = items("").await;
    let service = catalog.start(&database).with("MANIFESTS", "on").service().await;
    let full = export(&service, "full", true).await;
    let files = service.files();
    let all_files = || {
        let entries = std::fs::read_dir(service.output()).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<BTreeSet<_>>()
    };
    let all = all_files();
    let replica = Replica { database: &database, source: "select * from items", key: &["k"] };
    replica.begin(&service, &full).await;
    let position = "select live_snapshot::text from watermarks";
    let before: String = database.one(position).await;
    let mut skipped = Vec::new();
    for export_type in ["delta", "incremental", "delta"] {
        // A transaction of another table moves the snapshot.
        database.run("create table if not exists other (); drop table other").await;
        let job = export(&service, export_type, true).await;
        let expected = json!({ "skipped": true, "progress": 100, "rowsExported": 0, "bytesWritten": 0, "files": [] });
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(job[name], *value, "{name} of {job}");
        }
        for name in ["outputFilename", "location", "sha256", "number", "digest", "acknowledged", "error"] {
            assert_eq!(job[name], Value::Null, "{name} of {job}");
        }
        assert_eq!((&job["watermarkFrom"], &job["watermarkTo"]), (&full["watermarkTo"], &full["watermarkTo"]));
        skipped.push(job["jobId"].clone());
        if skipped.len() == 2 {
            assert_eq!(listed(&service, "skipped").await.len(), 2, "the lane keeps those of the last minute");
            let statements =
                "update cdc_export.exports set finished_at = finished_at - interval '1 hour' where status = 'skipped'";
            database.run(statements).await;
        }
    }
    assert_ne!(database.one::<String>(position).await, before, "the position moves");
    // Hidden files are counted, too: a draft is gone.
    assert_eq!(service.files(), files);
    assert_eq!(all_files(), all);

    assert_eq!(listed(&service, "skipped").await, [skipped[2].clone()], "the lane keeps its latest");
    assert_eq!(listed(&service, "completed").await, [full["jobId"].clone()]);
    let id = skipped[2].as_str().unwrap();
    for (method, path) in [("GET", "download"), ("GET", "files/1/download"), ("GET", "manifest"), ("POST", "ack")] {
        service.refuses(method, &format!("/exports/{id}/{path}"), &[], 409, "no_file").await;
    }

    let events = service.ask("GET", &format!("/exports/{id}/events"), &[]).await.text().await.unwrap();
    assert!(events.contains("event: completed\n"), "{events}");

    database.run("delete from items where k = 1; update items set n = 2 where k = 2").await;
    // The last export that was loaded is the full one, which the skipped one after it stands for.
    let last = post(&service, "/exports/delta", Some("a"), &json!({ "dataset": "items", "after": skipped[0] })).await;
    assert_eq!(refusal(last).await, (409, "database_restored".to_owned()), "an earlier one is unknown");
    let next = service.ask("GET", &format!("/exports?consumer=a&dataset=items&after={id}"), &[]).await;
    assert_eq!(next.json::<Value>().await.unwrap()["items"], json!([]));
    let body = json!({ "dataset": "items", "skipEmpty": true, "after": skipped[2] });
    let delta = ended(&service, "/exports/delta", Some("a"), body).await;
    assert_eq!((&delta["skipped"], &delta["number"], &delta["rowsExported"]), (&json!(false), &json!(2), &json!(2)));
    replica.apply(&service, &delta).await;
    replica.require_equal().await;
    let manifest = service.get(&format!("/exports/{}/manifest", delta["jobId"].as_str().unwrap())).await;
    assert_eq!(manifest["export"]["previous"], full["digest"]);
}

#[tokio::test]
async fn an_export_with_something_to_tell_is_not_skipped() {
    let (database, catalog) = items("").await;
    let service = catalog.start(&database).service().await;
    let is_skipped = async |export_type: &str| export(&service, export_type, true).await["skipped"] == true;
    assert!(!is_skipped("incremental").await, "the first one of a lane");
    assert!(!is_skipped("full").await);
    assert!(is_skipped("delta").await);
    database.run("alter table items add column more text").await;
    let changed = export(&service, "delta", true).await;
    assert_eq!((&changed["skipped"], &changed["schemaChanged"]), (&json!(false), &json!(true)), "{changed}");
    assert!(is_skipped("delta").await);
    database.run("begin; set local cdc_export.quiet = 'delete'; delete from items where k = 1; commit").await;
    let quiet = export(&service, "delta", true).await;
    assert_eq!((&quiet["skipped"], &quiet["quietDeletes"]), (&json!(false), &json!(1)), "{quiet}");
    assert!(is_skipped("delta").await);
    database.run("truncate items").await;
    let truncated =
        ended(&service, "/exports/delta", Some("a"), json!({ "dataset": "items", "skipEmpty": true })).await;
    assert_eq!(truncated["error"]["code"], "full_export_needed", "{truncated}");
    assert!(!is_skipped("full").await);
    assert!(is_skipped("incremental").await);
}

#[tokio::test]
async fn an_export_of_a_table_that_never_had_a_row_is_skipped_too() {
    let (database, catalog) = items("").await;
    database.run("delete from items").await;
    let service = catalog.start(&database).service().await;
    let full = export(&service, "full", true).await;
    assert_eq!((&full["skipped"], &full["number"]), (&json!(false), &json!(1)));
    for export_type in ["delta", "incremental", "delta"] {
        assert_eq!(export(&service, export_type, true).await["skipped"], true, "{export_type}");
    }
    database.run("insert into items values (7, 1)").await;
    let delta = export(&service, "delta", true).await;
    assert_eq!((&delta["rowsExported"], &delta["number"]), (&json!(1), &json!(2)), "{delta}");
    assert_eq!(export(&service, "delta", true).await["skipped"], true);
}

#[tokio::test]
async fn the_dataset_decides_if_the_request_does_not() {
    let more = "skip_empty = true\n[[schedule]]\nname = \"s\"\nconsumer = \"b\"\ndataset = \"items\"\ntype = \"delta\"\n\
                every = \"366d\"\nskip_empty = false\n";
    let (database, catalog) = items(more).await;
    let service = catalog.start(&database).service().await;
    export(&service, "full", None).await;
    assert_eq!(export(&service, "delta", None).await["skipped"], true);
    assert_eq!(export(&service, "delta", false).await["skipped"], false);
    let stored = eventually("the schedule's job", async || {
        let asked = "select string_agg(skip_empty::text, ' ') from cdc_export.jobs where consumer_id = 'b'";
        database.one::<Option<String>>(asked).await
    });
    assert_eq!(stored.await, "false");
    let ad_hoc = post(&service, "/exports", None, &json!({ "dataset": "items", "skipEmpty": true })).await;
    assert_eq!(refusal(ad_hoc).await, (400, "member_unknown".to_owned()));
}

#[tokio::test]
async fn a_crash_at_the_commit_of_a_skipped_export_is_made_good() {
    let (database, catalog) = items("").await;
    let start = || catalog.start(&database).with("LEASE_SECONDS", 1);
    let first = start().service().await;
    export(&first, "full", true).await;
    let mut doomed = start().sharing_output(&first).with("FAILPOINTS", "worker.commit=kill").service().await;
    first.signal(Signal::SIGSTOP);
    let id = submit(&doomed, "/exports/delta", Some("a"), json!({ "dataset": "items", "skipEmpty": true })).await;
    doomed.dies().await;
    first.signal(Signal::SIGCONT);
    let job = first.ended(&id).await;
    assert_eq!((&job["status"], &job["skipped"]), (&json!("completed"), &json!(true)), "{job}");
    assert_eq!(first.files().len(), 1);
}
