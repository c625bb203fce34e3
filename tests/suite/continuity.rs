//! Exports that the guard of continuity refuses, passes or heals, with its words.

use serde_json::{Value, json};

use crate::harness::{Csv, Database, Service, Start, ends, eventually, serving_users, until};

/// The whole row of a consumer's watermark, hidden columns too.
pub(crate) async fn position(database: &Database, consumer: &str) -> Option<String> {
    sqlx::query_scalar("select w::text from watermarks w where consumer_id = $1")
        .bind(consumer)
        .fetch_optional(&database.pool)
        .await
        .unwrap()
}

/// An export that the guard refuses: it names its word, and nothing moves.
pub(crate) async fn refused(database: &Database, service: &Service, export_type: &str, consumer: &str, word: &str) {
    let (before, files) = (position(database, consumer).await, service.files());
    let job = service.ended(&service.submit(export_type, consumer).await).await;
    assert_eq!(job["status"], "failed", "{export_type}: {job}");
    assert_eq!(job["error"]["code"], "full_export_needed", "{export_type}: {job}");
    assert_eq!(job["continuity"], json!(word), "{export_type}: {job}");
    assert_eq!(job["attempt"], 1, "{export_type}: {job}");
    assert_eq!(position(database, consumer).await, before, "{export_type} after {word}");
    // The attempt's draft goes once the job has ended.
    until("nothing is left", async || service.files() == files).await;
}

/// An export that the guard lets pass, with its word; null for none.
pub(crate) async fn passes(service: &Service, export_type: &str, consumer: &str, word: Option<&str>) -> (Value, Csv) {
    let (job, file) = service.export(export_type, consumer).await;
    assert_eq!(job["continuity"], json!(word), "{export_type}: {job}");
    (job, file)
}

/// A full export passes with the word, and afterwards there is nothing to say and nothing due.
pub(crate) async fn full_heals(database: &Database, service: &Service, consumer: &str, word: &str) {
    let (_, full) = passes(service, "full", consumer, Some(word)).await;
    let live: Vec<i64> = database.all("select id from users where not is_deleted order by id").await;
    assert_eq!(full.ids(), live);
    for export_type in ["incremental", "delta"] {
        let (_, file) = passes(service, export_type, consumer, None).await;
        assert!(file.rows.is_empty(), "{export_type} after {word}: {file:?}");
    }
}

/// Operation and key of a delta's rows, sorted.
pub(crate) fn operations(delta: &Csv) -> Vec<(&str, &str)> {
    let mut rows: Vec<_> = delta.rows.iter().map(|row| (row[0].as_str(), row[1].as_str())).collect();
    rows.sort_unstable();
    rows
}

pub(crate) async fn command(database: &Database, command: &[&str]) -> (i32, String, String) {
    Start::on(database).arguments(command).output().await
}

pub(crate) async fn track(database: &Database) {
    ends(command(database, &["track", "users"]).await, 0, "");
}

pub(crate) async fn logged(database: &Database) -> i64 {
    database.one("select count(*) from cdc_export.change_log").await
}

pub(crate) async fn log_becomes(database: &Database, rows: i64) {
    eventually(&format!("the log has {rows} rows"), || async { (logged(database).await == rows).then_some(()) }).await;
}

pub(crate) async fn exported(users: i64, consumers: &[&str]) -> (Database, Service) {
    let (database, service) = serving_users(users).await;
    for consumer in consumers {
        passes(&service, "full", consumer, None).await;
    }
    (database, service)
}
