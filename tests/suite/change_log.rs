//! The cost of the change log for its readers and for the purge, which grows with the rows that they need.

use std::time::Duration;

use cdc_capture::Caps;
use chrono::Utc;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor};

use crate::harness::{Database, Start};
use crate::plans::{cost_of, log_plans, plans};
use crate::waiting::page::{consumers, copy_position};

/// Returns the rows that all nodes of a statement's plan returned or removed. The statement is rolled back.
async fn rows_handled(database: &Database, statement: &str) -> u64 {
    fn of_node(node: &Value) -> f64 {
        let number = |name: &str| node[name].as_f64().unwrap_or(0.0);
        let own = number("Actual Rows") + number("Rows Removed by Filter") + number("Rows Removed by Join Filter");
        let children = node["Plans"].as_array().into_iter().flatten();
        own * number("Actual Loops") + children.map(of_node).sum::<f64>()
    }
    // Runs the statement like the service.
    let mut tx = database.open("set local enable_seqscan = off; set local enable_bitmapscan = off").await;
    let explain = format!("explain (analyze, timing off, format json) {statement}");
    let plan: Value = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_one(&mut *tx).await.unwrap();
    tx.rollback().await.unwrap();
    of_node(&plan[0]["Plan"]) as u64
}

#[tokio::test]
async fn a_purge_beside_an_open_transaction_looks_at_each_row_once() {
    let database = Database::with_users(3_000).await;
    let caps = Caps { bytes: 1 << 40, age: Duration::from_secs(3600), now: Some(Utc::now()) };
    caps.purge(&mut database.pool.acquire().await.unwrap()).await.unwrap();
    // The service itself would remove the rows, once its consumer has seen them.
    let no_purge = database.open("lock table cdc_export.locks in share update exclusive mode").await;
    let service = Start::on(&database).service().await;
    let mut open = database.open("update users set name = 'open' where id = 2").await;
    let open_xid: String = sqlx::query_scalar("select pg_current_xact_id()::text").fetch_one(&mut *open).await.unwrap();
    database.run("update users set name = 'seen by all' where id <> 2").await;
    service.export("full", "reader").await;
    service.stop().await;
    no_purge.rollback().await.unwrap();
    copy_position(&database, "reader", 999).await;
    // Each position has its own snapshot, as if taken between two of these transactions. Only the open transaction is
    // in progress in a snapshot: other databases of the server decide how many more there are.
    database.run("do $$ begin for n in 1..999 loop perform pg_current_xact_id(); commit; end loop; end $$").await;
    let statements = format!(
        "update watermarks w set live_snapshot = own.snapshot, deletions_snapshot = own.snapshot
         from watermarks o
         cross join lateral (
           select format('{open_xid}:%s:{open_xid}',
             pg_snapshot_xmax(o.live_snapshot)::text::bigint + split_part(o.consumer_id, '-', 2)::int)::pg_snapshot
             as snapshot) own
         where o.id = w.id and w.consumer_id like 'reader-%'"
    );
    database.run(&statements).await;
    database.run("analyze cdc_export.change_log; analyze watermarks").await;

    let purge_statement = include_str!("../../crates/cdc-capture/src/purge/purge.sql").replace("$1", "50000");
    let handled = rows_handled(&database, &purge_statement).await;
    assert!(handled < 40_000, "{handled} rows for 2,999 rows of the log and 1,000 positions");

    assert_eq!(caps.purge(&mut database.pool.acquire().await.unwrap()).await.unwrap(), 2_999);
    // Nobody has seen the row of the open transaction, and a row that came after the positions.
    open.commit().await.unwrap();
    database.run("update users set name = 'seen by nobody' where id = 1").await;
    assert_eq!(caps.purge(&mut database.pool.acquire().await.unwrap()).await.unwrap(), 0);
    let service = Start::on(&database).service().await;
    let (_, delta) = service.export("delta", "reader-999").await;
    assert_eq!(delta.ids(), [1, 2]);
}

#[tokio::test]
async fn an_export_beside_an_open_transaction_reads_what_its_position_has_not_seen() {
    let database = Database::with_users(3_000).await;
    log_plans(&database).await;
    let service = Start::on(&database).service().await;
    // The position of `behind` keeps the log.
    service.export("full", "behind").await;
    let mut open =
        database.open("update users set name = 'open' where id = 2; set local cdc_export.quiet = 'delete'").await;
    open.execute("delete from users where id = 3").await.unwrap();
    database.run("update users set name = 'seen' where id > 3").await;
    database.run("set cdc_export.quiet = 'delete'; delete from users where id > 2990; reset cdc_export.quiet").await;
    for consumer in ["delta", "incremental", "set-back"] {
        service.export("full", consumer).await;
    }
    database.run("analyze cdc_export.change_log").await;

    assert!(service.export("delta", "delta").await.1.rows.is_empty());
    assert!(service.export("incremental", "incremental").await.1.rows.is_empty());
    assert!(service.export("delta", "incremental").await.1.rows.is_empty());
    consumers(&service).await;
    let exported = plans(&database, "-- source.copy.changes");
    let opened = plans(&database, "-- source.snapshot.open");
    let listed = plans(&database, "-- source.lag.list");
    assert!(exported.len() >= 4 && opened.len() >= 7 && !listed.is_empty(), "{exported:?} {opened:?} {listed:?}");
    for plan in exported.iter().chain(&opened[4..]) {
        let (read, filtered) = cost_of(plan, "change_log");
        assert!(read + filtered < 20, "{read} {filtered} {plan}");
    }

    // Nothing of the open transaction is lost.
    open.commit().await.unwrap();
    database.run("update users set name = 'later' where id = 9").await;
    for consumer in ["delta", "incremental"] {
        let (job, file) = service.export("delta", consumer).await;
        assert_eq!((file.ids(), &job["quietDeletes"]), (vec![2, 9], &serde_json::json!(1)), "{job}");
    }
}
