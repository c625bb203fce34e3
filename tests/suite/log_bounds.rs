//! The bound of the change log: which positions are given up if the log holds too much, and for which of them it stays.

use std::time::Duration;

use cdc_capture::{Caps, Source};
use chrono::Utc;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::catalog::{self, Catalog};
use crate::continuity::logged;
use crate::harness::{Database, Service, eventually};

/// The rows of the table `hot`. An update of all of them logs about 60 bytes a row.
const HOT_ROWS: u64 = 3_000;
const HOT_BYTES: u64 = 185_000;

fn blocks() -> [String; 2] {
    ["hot", "quiet"].map(|name| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\n"))
}

/// A database with the tracked tables `hot` and `quiet`, and a service whose consumers have a full export of each.
async fn exported(consumers: &[(&str, &str)]) -> (Database, Catalog, Service) {
    let tables =
        "create table hot (id bigint primary key, name text); create table quiet (id bigint primary key, name text)";
    let database = Database::new_with(tables).await;
    let statements = format!(
        "insert into hot select n, 'first' from generate_series(1, {HOT_ROWS}) n; insert into quiet values (1, 'first')"
    );
    database.run(&statements).await;
    for (block, name) in blocks().iter().zip(["hot", "quiet"]) {
        Catalog::of(block).track(&database, name).await;
    }
    let catalog = Catalog::of(&blocks().concat());
    let service = catalog.start(&database).service().await;
    for (dataset, consumer) in consumers {
        catalog::export(&service, "full", dataset, consumer).await;
    }
    (database, catalog, service)
}

/// Makes all positions two hours old, so that they are not spared.
async fn make_old(database: &Database) {
    let old = "update watermarks set saved_at = saved_at - interval '2 hours',
                 deletions_saved_at = deletions_saved_at - interval '2 hours'";
    database.run(old).await;
}

async fn change_all(database: &Database) {
    database.run("update hot set name = name || '!'").await;
}

async fn purge(database: &Database, bytes: u64) {
    let caps = Caps { bytes, age: Duration::from_secs(24 * 3600), now: Some(Utc::now()) };
    // With the settings of the service's sessions. Postgres would compile the statements, which takes a second.
    let server: cdc_export::postgres::Database = database.options.clone().into();
    let pool = server.pool();
    // If the service is purging, the first call does nothing. The service's next purge is ten seconds later.
    caps.purge(&mut pool.acquire().await.unwrap()).await.unwrap();
    database.run("begin; lock table cdc_export.locks in share update exclusive mode; commit").await;
    caps.purge(&mut pool.acquire().await.unwrap()).await.unwrap();
    pool.close().await;
}

/// The consumers whose positions were given up, with the part that each lost.
async fn given_up(database: &Database) -> Vec<(String, String)> {
    sqlx::query_as("select consumer_id, log_lost from watermarks where log_lost is not null order by 1")
        .fetch_all(&database.pool)
        .await
        .unwrap()
}

fn all_of(consumers: &[&str]) -> Vec<(String, String)> {
    consumers.iter().map(|consumer| ((*consumer).to_owned(), "all".to_owned())).collect()
}

#[tokio::test]
async fn a_backfill_leaves_consumers_of_other_tables_alone() {
    let (database, _catalog, service) = exported(&[("hot", "nightly"), ("quiet", "daily")]).await;
    make_old(&database).await;
    database.run("update quiet set name = 'second'").await;
    change_all(&database).await;
    purge(&database, HOT_BYTES / 2).await;
    assert_eq!(given_up(&database).await, all_of(&["nightly"]));
    assert_eq!(logged(&database).await, 1, "the change of the quiet table");
    assert_eq!(catalog::export(&service, "delta", "quiet", "daily").await["rowsExported"], 1);
    let failed = catalog::ended(&service, "/exports/delta", Some("nightly"), json!({ "dataset": "hot" })).await;
    assert_eq!(failed["continuity"], "log_expired", "{failed}");
    catalog::export(&service, "full", "hot", "nightly").await;
    assert_eq!(catalog::export(&service, "delta", "hot", "nightly").await["rowsExported"], 0);
}

#[tokio::test]
async fn a_table_without_positions_counts_for_nobody() {
    let (database, _catalog, service) = exported(&[("quiet", "daily")]).await;
    make_old(&database).await;
    database.run("update quiet set name = 'second'").await;
    let no_purge = database.open("lock table cdc_export.locks in share update exclusive mode").await;
    change_all(&database).await;
    no_purge.rollback().await.unwrap();
    purge(&database, 1024).await;
    assert_eq!((given_up(&database).await, logged(&database).await), (vec![], 1));
    assert_eq!(catalog::export(&service, "delta", "quiet", "daily").await["rowsExported"], 1);
}

#[tokio::test]
async fn one_large_statement_spares_young_positions_up_to_twice_the_bound() {
    let (database, _catalog, service) = exported(&[("hot", "old")]).await;
    make_old(&database).await;
    catalog::export(&service, "full", "hot", "young").await;
    let bytes = HOT_BYTES * 3 / 4;
    change_all(&database).await;
    purge(&database, bytes).await;
    assert_eq!(given_up(&database).await, all_of(&["old"]));
    assert_eq!(catalog::export(&service, "delta", "hot", "young").await["rowsExported"], HOT_ROWS);
    // At twice the bound nobody is spared.
    change_all(&database).await;
    change_all(&database).await;
    purge(&database, bytes).await;
    assert_eq!((given_up(&database).await, logged(&database).await), (all_of(&["old", "young"]), 0));
}

#[tokio::test]
async fn the_furthest_behind_are_given_up_first() {
    let (database, _catalog, service) = exported(&[("hot", "first")]).await;
    change_all(&database).await;
    catalog::export(&service, "full", "hot", "second").await;
    change_all(&database).await;
    catalog::export(&service, "full", "hot", "third").await;
    change_all(&database).await;
    make_old(&database).await;
    for (bytes, given) in [
        (HOT_BYTES * 7 / 2, &[][..]),
        (HOT_BYTES * 5 / 2, &["first"]),
        (HOT_BYTES * 3 / 2, &["first", "second"]),
        (HOT_BYTES / 2, &["first", "second", "third"]),
    ] {
        purge(&database, bytes).await;
        assert_eq!(given_up(&database).await, all_of(given), "{bytes}");
        assert_eq!(logged(&database).await as u64, (3 - given.len() as u64) * HOT_ROWS, "{bytes}");
    }
}

#[tokio::test]
async fn changes_of_a_transaction_that_was_open_at_the_export_count() {
    let (database, _catalog, service) = exported(&[]).await;
    let backfill = database.open("update hot set name = 'late'").await;
    catalog::export(&service, "full", "hot", "reader").await;
    catalog::export(&service, "full", "quiet", "other").await;
    backfill.commit().await.unwrap();
    make_old(&database).await;
    purge(&database, HOT_BYTES * 2).await;
    assert_eq!((given_up(&database).await, logged(&database).await as u64), (vec![], HOT_ROWS));
    purge(&database, HOT_BYTES / 2).await;
    assert_eq!((given_up(&database).await, logged(&database).await), (all_of(&["reader"]), 0));
}

#[tokio::test]
async fn a_lane_whose_job_runs_is_spared() {
    let (database, catalog, service) = exported(&[("hot", "runs"), ("hot", "rests")]).await;
    service.stop().await;
    let service = catalog.start(&database).with("FAILPOINTS", "worker.staged=hold").service().await;
    change_all(&database).await;
    let id = catalog::submit(&service, "/exports/delta", Some("runs"), json!({ "dataset": "hot" })).await;
    service.reaches("worker.staged").await;
    make_old(&database).await;
    purge(&database, HOT_BYTES * 3 / 4).await;
    assert_eq!(given_up(&database).await, all_of(&["rests"]));
    service.release("worker.staged").await;
    let job = service.ended(&id).await;
    assert_eq!(job["status"], "completed", "{}", service.log());
    assert_eq!(job["attempt"], 1, "{}", service.log());
    assert_eq!(job["rowsExported"], json!(HOT_ROWS), "{}", service.log());
}

#[tokio::test]
async fn the_log_of_the_service_names_the_limit() {
    let (database, catalog, service) = exported(&[("hot", "reader")]).await;
    service.stop().await;
    change_all(&database).await;
    // At its start a service purges at once.
    let service = catalog.start(&database).with("CHANGE_LOG_MAX_BYTES", "80KiB").service().await;
    let event = eventually("a position is given up", || async { service.events("position_given_up").pop() }).await;
    let told = ["consumerId", "dataset", "lost", "limit"].map(|member| event[member].clone());
    assert_eq!(json!(told), json!(["reader", "hot", "all", "twice_the_bytes"]));
}

/// Random positions, some of which the purge gives up: whoever keeps its position gets each change that it lacks.
#[tokio::test]
async fn no_purge_removes_what_a_kept_position_needs() {
    let (database, _catalog, service) = exported(&[]).await;
    let (consumers, mut seen) = (["a", "b", "c", "d"], [0_u64; 4]);
    for round in 1..=12_u64 {
        let rows = [300, 3_000, 1_000][round as usize % 3];
        database.run(&format!("update hot set name = '{round}' where id <= {rows}")).await;
        for (at, consumer) in consumers.iter().enumerate() {
            if !(round + at as u64).is_multiple_of(at as u64 + 2) {
                continue;
            }
            let lost: bool = database
                .one(&format!(
                    "select coalesce(bool_or(log_lost is not null), true) from watermarks where consumer_id = '{consumer}'"
                ))
                .await;
            let export_type = if lost { "full" } else { "delta" };
            let job = catalog::export(&service, export_type, "hot", consumer).await;
            let changed: i64 = database
                .one(&format!("select count(*) from hot where name ~ '^[0-9]+$' and name::int > {}", seen[at]))
                .await;
            let expected = if lost { HOT_ROWS as i64 } else { changed };
            assert_eq!(job["rowsExported"], expected, "{round} {consumer} {export_type}");
            seen[at] = round;
        }
        if round.is_multiple_of(2) {
            make_old(&database).await;
        }
        purge(&database, HOT_BYTES * 4 / 3).await;
    }
}

#[tokio::test]
async fn consumers_are_listed_with_their_part_of_the_log() {
    let (database, _catalog, service) = exported(&[("hot", "far"), ("quiet", "near")]).await;
    change_all(&database).await;
    let listed: Value = service.call("GET", "/consumers", &[]).await.json().await.unwrap();
    let of = |at: usize, member: &str| listed["items"][at][member].as_u64().unwrap_or_else(|| panic!("{listed}"));
    let bytes = of(0, "logBytes");
    assert!((HOT_BYTES * 9 / 10..HOT_BYTES * 11 / 10).contains(&bytes), "{bytes}");
    assert_eq!((of(0, "logBytesMax"), of(1, "logBytes"), of(1, "logBytesMax")), (10 << 30, 0, (10 << 30) - bytes));
}

/// Writes rows to the log as triggers would, so that it has more blocks than the sample.
async fn fill_log(database: &Database, table: &str, rows: u64) {
    let statements = format!(
        "insert into cdc_export.change_log (table_oid, operation, key)
         select '{table}'::regclass, 'U', n from generate_series(1, {rows}) n"
    );
    database.run(&statements).await;
    database.run("vacuum analyze cdc_export.change_log").await;
}

#[tokio::test]
async fn a_sample_estimates_the_bytes_of_a_large_log() {
    let (database, _catalog, _service) = exported(&[("hot", "reader"), ("quiet", "reader")]).await;
    fill_log(&database, "hot", 400_000).await;
    fill_log(&database, "quiet", 100_000).await;
    let source = Source::new(database.options.clone(), database.pool.clone(), 1);
    let estimate = source.held_log_bytes().await.unwrap();
    let bytes: i64 = database.one("select sum(56 + pg_column_size(key)) from cdc_export.change_log").await;
    let share = estimate as f64 / bytes as f64;
    assert!((0.8..1.2).contains(&share), "{share}");
}

#[tokio::test]
async fn a_purge_does_not_read_the_rows_that_it_leaves() {
    let (database, _catalog, _service) = exported(&[("hot", "reader"), ("quiet", "reader")]).await;
    fill_log(&database, "hot", 200_000).await;
    fill_log(&database, "quiet", 1_000).await;
    let mut tx = database.open("set local enable_seqscan = off; set local enable_bitmapscan = off").await;
    let statement = include_str!("../../crates/cdc-capture/src/purge/purge.sql").replace("$1", "50000");
    let explain = format!("explain (analyze, buffers, timing off, format json) {statement}");
    let plan: Value = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_one(&mut *tx).await.unwrap();
    let blocks = |name: &str| plan[0]["Plan"][name].as_u64().unwrap();
    let read = blocks("Shared Hit Blocks") + blocks("Shared Read Blocks");
    assert!(read < 100, "{read} blocks: {plan}");
    tx.rollback().await.unwrap();
}
