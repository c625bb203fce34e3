//! The rows of each type of export, and the watermark after it.

use serde_json::Value;

use crate::harness::{Database, Start, serving_users};

const HEADER: [&str; 6] = ["id", "name", "email", "created_at", "updated_at", "is_deleted"];

#[tokio::test]
async fn a_full_export_holds_every_live_row_and_sets_the_watermark() {
    let (_, service) = serving_users(25).await;
    assert_eq!(service.watermark("a").await, None);

    let (job, file) = service.export("full", "a").await;
    assert_eq!(file.header, HEADER);
    assert_eq!(file.ids(), (1..=25).filter(|id| id % 10 != 0).collect::<Vec<_>>());
    assert!(file.rows.contains(&vec![
        "7".into(),
        "User 7".into(),
        "user7@example.com".into(),
        "2026-01-01T00:07:00.000000Z".into(),
        "2026-01-01T00:07:00.000000Z".into(),
        "false".into(),
    ]));
    assert_eq!(service.watermark("a").await.as_deref(), Some("2026-01-01T00:25:00.000000Z"));
    assert_eq!(job["rowsExported"], 23);
    assert_eq!(job["progress"], 100);
    assert_eq!(job["watermarkFrom"], Value::Null);
    assert_eq!(job["watermarkTo"], "2026-01-01T00:25:00.000000Z");
    assert_eq!(job["attempt"], 1);
    assert_eq!(job["error"], Value::Null);
    let content = std::fs::read(service.path(&job)).unwrap();
    assert_eq!(job["bytesWritten"], content.len());
    let sha256 = ring::digest::digest(&ring::digest::SHA256, &content);
    let hex: String = sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(job["sha256"], hex);
}

#[tokio::test]
async fn incremental_and_delta_hold_what_changed_since() {
    let (database, service) = serving_users(20).await;
    service.export("full", "a").await;
    service.export("full", "b").await;

    database.run("update users set name = 'Changed', updated_at = '2026-02-01' where id = 3").await;
    database.run("update users set is_deleted = true, updated_at = '2026-02-02' where id = 4").await;
    database.add_users(50_000, 50_001).await;

    let (job, incremental) = service.export("incremental", "a").await;
    assert_eq!(incremental.header, HEADER);
    assert_eq!(incremental.ids(), [3, 50_001], "neither the deleted ones nor the unchanged");
    assert_eq!(job["watermarkFrom"], "2026-01-01T00:19:00.000000Z");
    assert_eq!(job["watermarkTo"], "2026-02-04T17:21:00.000000Z");

    let (_, delta) = service.export("delta", "b").await;
    assert_eq!(delta.header, [&["operation"], &HEADER[..]].concat());
    let operations: Vec<_> = delta.rows.iter().map(|row| (row[0].as_str(), row[1].as_str())).collect();
    // User 20 was deleted before the full export, later than any live one was changed: the log alone tells deletions.
    let (deleted, rest) = operations.split_at(2);
    assert_eq!(sorted(deleted), [("DELETE", "4"), ("DELETE", "50000")], "deletions come first");
    assert_eq!(sorted(rest), [("INSERT", "50001"), ("UPDATE", "3")]);

    let (job, nothing) = service.export("delta", "b").await;
    assert!(nothing.rows.is_empty());
    assert_eq!(nothing.header[0], "operation");
    assert_eq!(job["rowsExported"], 0);
    assert_eq!(job["watermarkTo"], job["watermarkFrom"], "an export of no rows leaves the watermark");
}

fn sorted<'a>(rows: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut rows = rows.to_vec();
    rows.sort_unstable();
    rows
}

#[tokio::test]
async fn without_a_watermark_changes_start_from_the_beginning() {
    let (_, service) = serving_users(20).await;
    let (_, incremental) = service.export("incremental", "a").await;
    assert_eq!(incremental.rows.len(), 18);
    let (_, delta) = service.export("delta", "b").await;
    assert_eq!(delta.rows.len(), 20);
    assert_eq!(service.watermark("a").await.as_deref(), Some("2026-01-01T00:19:00.000000Z"));
    assert_eq!(service.watermark("b").await.as_deref(), Some("2026-01-01T00:20:00.000000Z"));
}

#[tokio::test]
async fn an_empty_table_gives_a_header_and_no_watermark() {
    let (_, service) = serving_users(0).await;
    for export_type in ["full", "incremental", "delta"] {
        let (job, file) = service.export(export_type, "a").await;
        assert_eq!((file.rows.len(), job["rowsExported"].as_i64()), (0, Some(0)));
        assert!(std::fs::read_to_string(service.path(&job)).unwrap().ends_with("is_deleted\n"));
    }
    assert_eq!(service.watermark("a").await, None);
}

#[tokio::test]
async fn the_watermark_is_the_latest_finite_time_and_never_moves_back() {
    let database = Database::with_users(3).await;
    database.run("update users set updated_at = 'infinity' where id = 1").await;
    database.run("update users set updated_at = '-infinity' where id = 2").await;
    let service = Start::on(&database).service().await;
    let (_, file) = service.export("full", "a").await;
    assert_eq!(file.sorted("updated_at"), ["-infinity", "2026-01-01T00:03:00.000000Z", "infinity"]);
    assert_eq!(service.watermark("a").await.as_deref(), Some("2026-01-01T00:03:00.000000Z"));

    database.run("delete from users where id = 3; update users set updated_at = '2025-01-01' where id = 1").await;
    service.export("full", "a").await;
    assert_eq!(service.watermark("a").await.as_deref(), Some("2026-01-01T00:03:00.000000Z"));
}
