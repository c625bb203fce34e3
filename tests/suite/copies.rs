//! A database and its copy over one folder: what the one's jobs made is nothing of the other one's to publish, remove
//! or sweep.

use cdc_destination::HiddenFile;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::continuity::{passes, refused};
use crate::crashes::killed_by_an_export;
use crate::harness::{Csv, Database, Service, Start, eventually, needs_full, serving_users};

/// Runs what needs that nobody is connected to the database.
async fn alone(database: &Database, statement: &str) {
    let others = "select pg_terminate_backend(pid) from pg_stat_activity where datname = ";
    let others = format!("{others}'{}'", database.options.get_database().unwrap());
    eventually(statement, || async {
        let mut conn = PgConnection::connect_with(&database.options.clone().database("postgres")).await.unwrap();
        conn.execute(AssertSqlSafe(others.clone())).await.unwrap();
        conn.execute(AssertSqlSafe(statement.to_owned())).await.ok()
    })
    .await;
}

/// A copy of a database, as `createdb -T` makes it. Nobody may be connected to the original.
async fn copy_of(database: &Database) -> Database {
    let name = database.options.get_database().unwrap();
    let copy = format!("{name}_copy");
    alone(database, &format!("create database {copy} template {name}")).await;
    Database::at(database.options.clone().database(&copy))
}

/// A job of a service that takes jobs and runs none.
async fn pending(database: &Database) -> (Service, String) {
    let mut service = Start::on(database).arguments(&["serve", "--no-workers"]).service().await;
    let id = service.submit("full", "a").await;
    service.end().await;
    (service, id)
}

#[tokio::test]
async fn a_copy_does_not_publish_or_harm_what_its_original_committed() {
    let database = Database::with_users(5).await;
    let mut doomed = Start::on(&database).with("FAILPOINTS", "worker.committed=kill").service().await;
    let id = killed_by_an_export(&database, &mut doomed).await;
    let hidden = doomed.files();
    assert!(hidden.len() == 1 && hidden[0].starts_with('.'), "{hidden:?}");

    let copy = copy_of(&database).await;
    let stranger = Start::on(&copy).sharing_output(&doomed).service().await;
    // In the copy it can't be had, and nobody waits for it.
    let job = stranger.ended(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("file_lost")), "{job}");
    assert_eq!(doomed.files(), hidden, "its file is the original's");
    refused(&copy, &stranger, "delta", "a", "file_lost").await;
    passes(&stranger, "full", "a", Some("file_lost")).await;

    let heir = Start::on(&database).sharing_output(&doomed).service().await;
    assert_eq!(Csv::read(&heir.path(&heir.completes(&id).await)).rows.len(), 5);
    passes(&heir, "delta", "a", None).await;
}

#[tokio::test]
async fn an_admin_of_a_copy_gives_up_what_the_original_then_publishes() {
    let database = Database::with_users(5).await;
    let mut doomed = Start::on(&database).with("FAILPOINTS", "sink.publish.renamed=kill").service().await;
    let id = killed_by_an_export(&database, &mut doomed).await;
    // It has its name, and that isn't recorded.
    let files = doomed.files();
    assert!(files.len() == 1 && !files[0].starts_with('.'), "{files:?}");
    let copy = copy_of(&database).await;
    copy.run("update cdc_export.exports set finished_at = finished_at - interval '1 minute'").await;
    let stranger = Start::on(&copy).arguments(&["serve", "--no-workers"]).sharing_output(&doomed).service().await;
    assert_eq!(stranger.call("DELETE", &format!("/exports/{id}"), &[]).await.status(), 204);
    assert_eq!(stranger.job(&id).await["error"]["code"], "file_lost");
    assert_eq!(doomed.files(), files);
    assert_eq!(Start::on(&database).sharing_output(&doomed).service().await.ended(&id).await["status"], "completed");
}

#[tokio::test]
async fn a_copy_reads_its_originals_files_and_removes_none() {
    let (database, mut service) = serving_users(5).await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(service.export("full", "a").await.0);
    }
    service.end().await;
    let files = service.files();
    let copy = copy_of(&database).await;
    let stranger =
        Start::on(&copy).sharing_output(&service).with("RETAIN_FILES", "1").with("RETAIN_JOBS", "2").service().await;
    let path = |job: &Value| format!("/exports/{}", job["jobId"].as_str().unwrap());
    let download = format!("{}/download", path(&jobs[2]));
    assert_eq!(stranger.call("GET", &download, &[]).await.text().await.unwrap().lines().count(), 6);
    stranger.refuses("DELETE", &path(&jobs[2]), &[], 409, "file_of_other_database").await;

    // A job past the retention of jobs is forgotten, and its file stays.
    passes(&stranger, "full", "a", Some("database_restored")).await;
    let left = async || (copy.one::<i64>("select count(*) from exports").await <= 2).then_some(());
    let keeping = Start::on(&copy).sharing_output(&service).with("RETAIN_FILES", "1").with("RETAIN_JOBS", "2");
    let keeping = keeping.service().await;
    eventually("jobs are forgotten", left).await;
    let now = service.files();
    assert!(files.iter().all(|file| now.contains(file)), "{files:?} {now:?}");
    keeping.stop().await;
    stranger.stop().await;

    // The original's own retention is as it was.
    let keeping = Start::on(&database).sharing_output(&service).with("RETAIN_FILES", "1").service().await;
    let removed = async || Some(keeping.events("file_removed").len()).filter(|removed| *removed == 2);
    eventually("the original's files are removed", removed).await;
    keeping.stop().await;

    // Now there is no original any more.
    copy.run("update cdc_export.jobs set database_id = default").await;
    let successor = Start::on(&copy).sharing_output(&service).service().await;
    assert_eq!(successor.call("DELETE", &path(&jobs[2]), &[]).await.status(), 204);
    assert!(!service.path(&jobs[2]).exists());
}

#[tokio::test]
async fn a_job_that_waits_in_a_copy_too_is_its_originals() {
    let database = Database::with_users(5).await;
    let (first, id) = pending(&database).await;
    let copy = copy_of(&database).await;
    let original = Start::on(&database).sharing_output(&first).with("FAILPOINTS", "worker.staged=hold").service().await;
    original.reaches("worker.staged").await;
    let live = original.files();
    assert!(live.len() == 1 && live[0].ends_with(".part"), "{live:?}");
    let stranger = Start::on(&copy).sharing_output(&first).with("LEASE_SECONDS", 1).service().await;
    // Under one id there is one file.
    let job = stranger.ended(&id).await;
    needs_full(&job, "database_restored");
    original.release("worker.staged").await;
    assert_eq!(Csv::read(&original.path(&original.completes(&id).await)).rows.len(), 5, "nobody swept it");
}

#[tokio::test]
async fn a_hidden_file_of_another_database_is_not_swept() {
    let (database, service) = serving_users(5).await;
    let (job, _) = service.export("full", "a").await;
    let id: Uuid = job["jobId"].as_str().unwrap().parse().unwrap();
    let own: String = database.one("select database_id from cdc_export.jobs").await;
    let hidden = |database: &str, job: Uuid| {
        HiddenFile::of_attempt(&database.parse().unwrap(), job.into(), Uuid::new_v4(), 1).name
    };
    let theirs = hidden("00000000000000ff-1", id);
    // Its own, and one of a job that is gone, as after a restore. One like this that was just written may be a clone's,
    // whose identity is the same.
    let [gone, clones] = [(); 2].map(|()| hidden(&own, Uuid::new_v4()));
    for name in [&theirs, &hidden(&own, id), &gone, &clones] {
        std::fs::write(service.output().join(name), "left").unwrap();
    }
    let old = std::fs::File::options().write(true).open(service.output().join(&gone)).unwrap();
    old.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(7200)).unwrap();
    let _sweeper = Start::on(&database).sharing_output(&service).service().await;
    let name = job["outputFilename"].as_str().unwrap();
    let mut left = [theirs.as_str(), &clones, name];
    left.sort();
    let left = async || (service.files() == left).then_some(());
    eventually("only the others' are left", left).await;
}

#[tokio::test]
async fn a_copy_that_takes_its_originals_place_needs_a_full_export() {
    let (database, mut service) = serving_users(5).await;
    service.export("full", "a").await;
    service.end().await;
    let copy = copy_of(&database).await;
    // Delivered after the copy was made.
    let mut later = Start::on(&database).sharing_output(&service).service().await;
    database.add_users(6, 6).await;
    assert_eq!(passes(&later, "delta", "a", None).await.1.ids(), [6]);
    later.end().await;

    let name = database.options.get_database().unwrap().to_owned();
    alone(&database, &format!("alter database {name} rename to {name}_gone")).await;
    alone(&copy, &format!("alter database {name}_copy rename to {name}")).await;
    let database = Database::at(database.options.clone());
    let service = Start::on(&database).sharing_output(&service).service().await;
    for export_type in ["incremental", "delta"] {
        refused(&database, &service, export_type, "a", "database_restored").await;
    }
    crate::continuity::full_heals(&database, &service, "a", "database_restored").await;
}
