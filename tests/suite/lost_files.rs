//! A committed file that has no name yet: found wherever it stands, waited for while its folder is away, and given up
//! only when it is gone for sure.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{Csv, Database, Service, Start, eventually, needs_full, until};

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
