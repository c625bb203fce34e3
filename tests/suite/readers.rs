//! Several readers of one snapshot: the same rows, none twice, and nothing left behind when one is lost.

use serde_json::json;

use crate::harness::{Csv, Database, Service, Start, eventually, until};

/// Holds the file's first piece: what is behind it fills up, so that no reader ends before the others have come.
const HELD: &str = "sink.write=hold";

/// Many blocks, with nine rows in each.
async fn table_of(rows: i64) -> Database {
    let database = Database::new_with("alter table users set (fillfactor = 10)").await;
    database.add_users(1, rows).await;
    database
}

/// One for several readers; `None` before Postgres 14, which can't scan a range of blocks, so that one reads it all.
async fn large_table() -> Option<Database> {
    let database = table_of(30_000).await;
    has_ranges(&database).await.then_some(database)
}

async fn has_ranges(database: &Database) -> bool {
    database.postgres_version().await >= 14
}

fn sorted(file: Csv) -> Vec<Vec<String>> {
    let mut rows = file.rows;
    rows.sort_unstable();
    rows
}

const COPYING: &str = "from pg_stat_activity where datname = current_database() and query like '-- source.copy%'";

/// Waits until so many connections read ranges, or have just read one.
async fn copying(database: &Database, readers: i64) {
    let count = format!("select count(*) {COPYING}");
    until("readers read", async || database.one::<i64>(&count).await == readers).await;
}

fn readers(service: &Service) -> Vec<u64> {
    service.events("table_read").iter().map(|line| line["readers"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn several_readers_read_one_snapshot_of_a_table_that_is_written_to() {
    let Some(database) = large_table().await else { return };
    let alone = Start::on(&database).with("READERS", 1).with("LOG_LEVEL", "debug").service().await;
    let (_, expected) = alone.export("full", "alone").await;
    assert_eq!(readers(&alone), [1]);
    // By one scan, for which Postgres uses few buffers.
    assert_eq!(alone.events("table_read")[0]["ranges"], 1);
    let live: Vec<i64> = (1..=30_000).filter(|id| id % 10 != 0).collect();
    let (_, incremental) = alone.export("incremental", "incremental").await;
    assert!(expected.ids() == live && incremental.ids() == live);
    let (_, delta) = alone.export("delta", "delta").await;
    assert!(delta.ids() == (1..=30_000).collect::<Vec<_>>());
    let (deletions, insertions) = delta.rows.split_at(3_000);
    assert!(deletions.iter().all(|row| row[0] == "DELETE") && insertions.iter().all(|row| row[0] == "INSERT"));
    alone.stop().await;

    let held = Start::on(&database).with("FAILPOINTS", HELD).with("LOG_LEVEL", "debug");
    let service = held.with("READERS", 3).service().await;
    let id = service.submit("full", "together").await;
    copying(&database, 3).await;
    // Some rows move to the end of the table, past what was its size.
    let changes = "update users set name = repeat('x', 200) where id % 3 = 0; delete from users where id % 7 = 0;
                   insert into users (id, name, email, created_at, updated_at)
                     select 100000 + n, 'new', 'new' || n, now(), now() from generate_series(1, 5000) n";
    database.run(changes).await;
    service.release("sink.write").await;
    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(1)), "{job}");
    assert_eq!(readers(&service), [3]);
    assert!(sorted(Csv::read(&service.path(&job))) == sorted(expected), "the same rows");
}

#[tokio::test]
async fn a_small_table_has_one_reader_and_before_14_a_large_one_too() {
    let database = table_of(8_000).await;
    if !has_ranges(&database).await {
        database.add_users(8_001, 30_000).await;
    }
    // Further readers would have time to come.
    let slow = Start::on(&database).with("FAILPOINTS", "sink.write=sleep:2000").with("LOG_LEVEL", "debug");
    let service = slow.with("READERS", 16).service().await;
    service.export("full", "a").await;
    assert_eq!(readers(&service), [1]);
}

#[tokio::test]
async fn a_reader_that_cannot_connect_is_done_without() {
    let Some(database) = large_table().await else { return };
    let held = Start::on(&database).with("FAILPOINTS", HELD).with("LOG_LEVEL", "debug");
    let service = held.with("READERS", 2).service().await;
    // Its leader and its first reader are connected when it waits for the lock.
    let (held, id) = service.held_export(&database, "full", "a").await;
    let allow = |yes| format!("update pg_database set datallowconn = {yes} where datname = current_database()");
    database.run(&allow(false)).await;
    held.rollback().await.unwrap();
    eventually("it is said", || async { service.events("reader_missing").pop() }).await;
    database.run(&allow(true)).await;
    service.release("sink.write").await;
    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(1)), "{job}");
    assert_eq!(readers(&service), [1]);
    assert_eq!(Csv::read(&service.path(&job)).rows.len(), 27_000);
}

#[tokio::test]
async fn a_reader_that_is_lost_costs_one_attempt() {
    let Some(database) = large_table().await else { return };
    let held = Start::on(&database).with("FAILPOINTS", HELD).with("LOG_LEVEL", "debug");
    let service = held.with("READERS", 2).service().await;
    let id = service.submit("full", "a").await;
    copying(&database, 2).await;
    // The one that came later.
    let kill = format!("select pg_terminate_backend(pid) {COPYING} order by backend_start desc limit 1");
    assert!(database.one::<bool>(&kill).await);
    service.release("sink.write").await;

    service.says("export_retried", &id).await;
    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(2)), "{job}");
    assert_eq!(Csv::read(&service.path(&job)).ids(), (1..=30_000).filter(|id| id % 10 != 0).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_cancelled_export_leaves_no_reader_behind() {
    let Some(database) = large_table().await else { return };
    let held = Start::on(&database).with("FAILPOINTS", HELD);
    let service = held.with("READERS", 2).service().await;
    let id = service.submit("full", "a").await;
    copying(&database, 2).await;
    assert_eq!(service.call("POST", &format!("/exports/{id}/cancel"), &[]).await.status(), 202);
    service.becomes(&id, "cancelled").await;
    copying(&database, 0).await;
    service.release("sink.write").await;
}
