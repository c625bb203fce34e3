//! Exports of many rows.

use crate::harness::{Database, Start};

#[tokio::test]
async fn a_large_export_comes_in_many_frames_and_ranges() {
    let database = Database::with_users(150_000).await;
    assert!(database.one::<i64>("select pg_relation_size('users') / 8192").await > 3 * 256, "several ranges of blocks");
    let service = Start::on(&database).service().await;
    for export_type in ["full", "incremental"] {
        let (job, file) = service.export(export_type, export_type).await;
        assert_eq!(job["rowsExported"], 135_000);
        assert_eq!(file.ids(), (1..=150_000).filter(|id| id % 10 != 0).collect::<Vec<_>>());
    }
    let (_, delta) = service.export("delta", "delta").await;
    assert!(delta.rows[..15_000].iter().all(|row| row[0] == "DELETE"));
    assert!(delta.rows[15_000..].iter().all(|row| row[0] == "INSERT"));
    assert_eq!(delta.rows.len(), 150_000);
}
