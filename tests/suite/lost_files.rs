//! A committed file that has no name yet: found wherever it stands, waited for while its folder is away, and given up
//! only when it is gone for sure.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{Csv, Database, Service, Start, eventually, needs_full, until};
use crate::several_datasets::{export_all, id, killed_by_a_job, of_exports, tables};

/// A service that dies between the commit of an export and its file's name, and where the file stands until then.
pub(crate) async fn dead_after_a_commit(
    database: &Database,
    start: Start,
    path: &str,
    consumer: Option<&str>,
) -> (Service, String, PathBuf) {
    let mut doomed = start.with("FAILPOINTS", "worker.committed=kill").service().await;
    let mut request = doomed.client.post(format!("{}{path}", doomed.address));
    if let Some(consumer) = consumer {
        request = request.header("X-Consumer-ID", consumer);
    }
    let _ = request.send().await;
    doomed.dies().await;
    let id = database.one("select job::text from exports order by created_at desc limit 1").await;
    // Maintenance may have been at the lane's marker, which has a hidden name too.
    let hidden = doomed.files().into_iter().find(|name| name.ends_with(".part")).unwrap();
    let hidden = doomed.output().join(hidden);
    (doomed, id, hidden)
}

fn move_all(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::rename(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

async fn refused(service: &Service, export_type: &str) {
    needs_full(&service.ended(&service.submit(export_type, "a").await).await, "file_lost");
}

#[tokio::test]
async fn a_file_that_vanished_before_it_had_its_name_fails_its_export_and_a_full_one_heals() {
    let database = Database::with_users(5).await;
    let (doomed, id, hidden) = dead_after_a_commit(&database, Start::on(&database), "/exports/delta", Some("a")).await;
    std::fs::remove_file(hidden).unwrap();
    let heir = Start::on(&database).sharing_output(&doomed).service().await;
    let job = heir.ended(&id).await;
    assert_eq!(job["status"], "failed", "{job}");
    assert_eq!((&job["error"]["code"], &job["continuity"]), (&json!("file_lost"), &json!("file_lost")), "{job}");
    assert_eq!((&job["sha256"], &job["progress"]), (&Value::Null, &json!(99)), "{job}");
    assert!(job["finishedAt"].is_string());
    // The one failure that leaves a moved watermark.
    assert_eq!(heir.watermark("a").await.as_deref(), job["watermarkTo"].as_str());
    assert!(job["watermarkTo"].is_string());
    heir.says("export_failed", &id).await;
    assert!(heir.events("export_completed").is_empty());
    let metrics = heir.call("GET", "/metrics", &[]).await.text().await.unwrap();
    assert!(metrics.lines().any(|line| line.contains("file_lost") && line.ends_with(" 1")), "{metrics}");

    let consumers: Value = heir.call("GET", "/consumers", &[]).await.json().await.unwrap();
    assert_eq!(consumers["items"][0]["continuity"], "file_lost", "{consumers}");
    for export_type in ["delta", "incremental"] {
        refused(&heir, export_type).await;
    }
    let (full, file) = heir.export("full", "a").await;
    assert_eq!((&full["continuity"], file.rows.len()), (&json!("file_lost"), 5));
    database.add_users(6, 8).await;
    let (delta, file) = heir.export("delta", "a").await;
    assert_eq!((&delta["continuity"], file.ids()), (&Value::Null, vec![6, 7, 8]));
}

#[tokio::test]
async fn an_ad_hoc_export_whose_file_vanished_fails_too() {
    let database = Database::with_users(5).await;
    let (doomed, id, hidden) = dead_after_a_commit(&database, Start::on(&database), "/exports", None).await;
    std::fs::remove_file(hidden).unwrap();
    let heir = Start::on(&database).sharing_output(&doomed).service().await;
    let job = heir.ended(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("file_lost")), "{job}");
    assert!(!database.one::<bool>("select exists (select from watermarks)").await);
}

#[tokio::test]
async fn a_file_is_not_lost_while_its_folder_is_away() {
    let database = Database::with_users(5).await;
    let (doomed, id, _) = dead_after_a_commit(&database, Start::on(&database), "/exports/full", Some("a")).await;
    // The service can't record that the file has its name.
    let schema =
        "create function refuse() returns trigger language plpgsql as 'begin raise exception ''refused''; end';
             create trigger refuse before update of published_at on cdc_export.exports
               for each row execute function refuse()";
    database.run(schema).await;
    let heir = Start::on(&database).sharing_output(&doomed).service().await;
    let named = async || heir.files().into_iter().find(|name| !name.starts_with('.'));
    eventually("the file has its name", named).await;
    let elsewhere = tempfile::tempdir_in(heir.output().parent().unwrap()).unwrap();
    move_all(heir.output(), elsewhere.path());
    let seen = async || heir.events("maintenance_failed").into_iter().find(|line| line["task"] == "publish");
    eventually("its absence is noticed", seen).await;
    database.run("drop trigger refuse on cdc_export.exports").await;
    let longer = "select clock_timestamp() > finished_at + interval '15 s' from exports";
    until("longer than a file is looked for", async || database.one::<bool>(longer).await).await;
    assert_eq!(heir.job(&id).await["status"], "processing");
    move_all(elsewhere.path(), heir.output());
    assert_eq!(heir.ended(&id).await["status"], "completed");
}

#[tokio::test]
async fn a_file_that_stands_under_another_name_is_found() {
    let database = Database::with_users(5).await;
    let (doomed, id, hidden) = dead_after_a_commit(&database, Start::on(&database), "/exports/full", Some("a")).await;
    // A publisher that dies leaves this, if the name was given up meanwhile.
    std::fs::rename(&hidden, doomed.output().join("full_a_20200101T000000Z-7.csv")).unwrap();
    let heir = Start::on(&database).sharing_output(&doomed).service().await;
    let job = heir.completes(&id).await;
    assert_eq!(heir.files(), [job["outputFilename"].as_str().unwrap()]);
    assert_eq!(Csv::read(&heir.path(&job)).rows.len(), 5);
}

/// Returns a service with another folder than the one in which a committed job of all tables waits for its files'
/// names, and the id of that job.
async fn folder_lost_after_a_commit() -> (Database, Service, String) {
    let (database, catalog) = tables().await;
    let mut doomed = catalog.start(&database).with("FAILPOINTS", "worker.committed=kill").service().await;
    let job = killed_by_a_job(&mut doomed, &database, "full", json!({ "datasets": "*" })).await;
    let elsewhere = catalog.start(&database).service().await;
    (database, elsewhere, job)
}

const TWO_MINUTES_LATER: &str = "update cdc_export.exports set finished_at = finished_at - interval '2 minutes'";

#[tokio::test]
async fn a_job_whose_folder_is_lost_is_named_with_the_remedy_wherever_somebody_looks() {
    let (database, elsewhere, job) = folder_lost_after_a_commit().await;
    assert_eq!(elsewhere.job(&job).await["error"], Value::Null, "the files may get their names in a moment");
    database.run(TWO_MINUTES_LATER).await;

    let remedy = format!("DELETE /exports/{job}");
    let error = elsewhere.job(&job).await["error"].clone();
    assert_eq!(error["code"], "not_published", "{error}");
    assert!(error["detail"].as_str().unwrap().contains(&remedy), "{error}");
    let consumers = elsewhere.get("/consumers").await;
    let states: Vec<_> = consumers["items"].as_array().unwrap().iter().map(|lane| lane["state"].clone()).collect();
    assert_eq!(states, ["not_published"; 3], "{consumers}");
    let ready = elsewhere.get("/health/ready").await;
    let check = ready["checks"]["publishing"].as_str().unwrap_or_default();
    assert!(check.contains("GET /exports?status=processing"), "{ready}");
    let line = eventually("the log names the job", async || elsewhere.events("publish_failed").pop()).await;
    assert_eq!(line["jobId"], job, "{line}");
    assert!(line["message"].as_str().unwrap_or_default().contains(&remedy), "{line}");
    assert_eq!(elsewhere.events("publish_failed").len(), 1, "one line for the job, not one for each of its exports");
}

#[tokio::test]
async fn one_call_gives_up_all_exports_of_a_job_whose_folder_is_lost() {
    let (database, elsewhere, job) = folder_lost_after_a_commit().await;
    let path = format!("/exports/{job}");
    elsewhere.refuses("DELETE", &path, &[], 409, "still_open").await;
    database.run(TWO_MINUTES_LATER).await;
    assert_eq!(elsewhere.call("DELETE", &path, &[]).await.status(), 204);
    let ended = elsewhere.job(&job).await;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&json!("failed"), &json!("file_lost")), "{ended}");
    assert_eq!(of_exports(&ended, "number"), json!([null, null, null]), "{ended}");
    // Nothing waits any more.
    let next = export_all(&elsewhere, "full", json!({ "datasets": "*" })).await;
    assert_eq!(next["status"], "completed", "{next}");
    assert_eq!(elsewhere.get("/health/ready").await["checks"]["publishing"], Value::Null);
}

/// The consumers of these may not have fetched them yet.
#[tokio::test]
async fn the_call_that_gives_a_job_up_leaves_the_files_that_have_their_names() {
    let (database, elsewhere, job) = folder_lost_after_a_commit().await;
    let published =
        "update cdc_export.exports set published_at = clock_timestamp(), number = 1 where dataset = 'alpha';
                     update cdc_export.jobs set open_exports = 2";
    database.run(&format!("{TWO_MINUTES_LATER}; {published}")).await;
    assert_eq!(elsewhere.call("DELETE", &format!("/exports/{job}"), &[]).await.status(), 204);
    assert_eq!(of_exports(&elsewhere.job(&job).await, "number"), json!([1, null, null]));
    let removed = "select count(*) from cdc_export.exports where file_removed_at is not null";
    assert_eq!(database.one::<i64>(removed).await, 0);
}

#[tokio::test]
async fn one_call_removes_the_files_of_an_ended_job_of_several_datasets() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let job = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let path = format!("/exports/{}", id(&job));
    assert_eq!(service.call("DELETE", &path, &[]).await.status(), 204);
    for dataset in ["alpha", "beta", "gamma"] {
        let download = format!("{path}/download?dataset={dataset}");
        service.refuses("GET", &download, &[], 410, "file_gone").await;
    }
}
