//! Exact change capture: what changed is told by the log, not by the clock.

use serde_json::json;

use crate::harness::{Database, Service, Start};

async fn after_a_full_export(users: i64) -> (Database, Service) {
    let database = Database::new().await;
    database.add_users(1, users).await;
    let service = Start::on(&database).service().await;
    service.export("full", "a").await;
    (database, service)
}

#[tokio::test]
async fn a_transaction_that_commits_late_is_not_lost() {
    let (database, service) = after_a_full_export(20).await;
    let mut late = database.pool.begin().await.unwrap();
    sqlx::query("update users set name = 'late', updated_at = '2026-03-01' where id = 1")
        .execute(&mut *late)
        .await
        .unwrap();
    database.run("update users set name = 'early', updated_at = '2026-03-02' where id = 2").await;

    let (job, file) = service.export("incremental", "a").await;
    assert_eq!(file.ids(), [2]);
    assert_eq!(job["openTransactions"], 1);
    assert!(job["oldestTransactionSeconds"].as_f64().is_some_and(|seconds| seconds >= 0.0));
    assert_eq!(job["watermarkTo"], "2026-03-02T00:00:00.000000Z");
    late.commit().await.unwrap();

    let (job, file) = service.export("incremental", "a").await;
    assert_eq!(file.ids(), [1], "its time is below the watermark");
    assert_eq!((&job["lateRows"], &job["openTransactions"]), (&json!(1), &json!(0)));
    assert_eq!(job["watermarkTo"], "2026-03-02T00:00:00.000000Z", "it doesn't move back");
    let (job, file) = service.export("incremental", "a").await;
    assert!(file.rows.is_empty(), "and nothing twice");
    assert_eq!((&job["lateRows"], &job["continuity"]), (&json!(0), &json!(null)));
    service.stop().await;
}

#[tokio::test]
async fn deletions_and_changed_keys_are_seen_by_a_delta_alone() {
    let (database, service) = after_a_full_export(19).await;
    database
        .run(
            "delete from users where id = 3;
             update users set id = 100 where id = 4;
             delete from users where id = 5;
             insert into users (id, name, email, created_at, updated_at)
               values (5, 'again', 'again@example.com', '2020-01-01', '2020-01-01');
             insert into users (id, name, email, created_at, updated_at) values (200, 'short', 'short@example.com', now(), now());
             delete from users where id = 200",
        )
        .await;
    let (_, incremental) = service.export("incremental", "a").await;
    assert_eq!(incremental.ids(), [5, 100]);

    let (job, delta) = service.export("delta", "a").await;
    let mut rows: Vec<_> = delta.rows.iter().map(|row| (row[0].as_str(), row[1].as_str(), row[2].as_str())).collect();
    rows.sort_unstable();
    let deleted = [("DELETE", "200", "short"), ("DELETE", "3", "User 3"), ("DELETE", "4", "User 4")];
    assert_eq!(rows, deleted, "the live rows went with the incremental export, the deletions did not");
    let row = delta.rows.iter().find(|row| row[1] == "3").unwrap();
    assert_eq!(row[3..], ["user3@example.com", "2026-01-01T00:03:00.000000Z", "2026-01-01T00:03:00.000000Z", "true"]);
    assert_eq!(job["lateRows"], 3);
    let (_, delta) = service.export("delta", "a").await;
    assert!(delta.rows.is_empty());
    service.stop().await;
}

#[tokio::test]
async fn future_and_infinite_times_blind_nobody() {
    let (database, service) = after_a_full_export(20).await;
    database.run("update users set updated_at = '2999-01-01' where id = 1; update users set updated_at = 'infinity' where id = 2").await;
    let (job, file) = service.export("incremental", "a").await;
    assert_eq!(file.ids(), [1, 2]);
    assert_eq!(job["watermarkTo"], "2999-01-01T00:00:00.000000Z");
    database.run("update users set name = 'x', updated_at = now() where id = 3; update users set updated_at = '-infinity' where id = 4").await;
    let (job, file) = service.export("incremental", "a").await;
    assert_eq!(file.ids(), [3, 4]);
    assert_eq!(job["lateRows"], 2);
    service.stop().await;
}
