//! Clocks that are wrong.

use serde_json::Value;

use crate::catalog::Catalog;
use crate::harness::{Database, eventually, until};

/// A database whose clock a test sets: its functions of the present time add `clock.ahead`.
async fn with_a_clock() -> Database {
    let database = Database::with_users(5).await;
    database.run("create table public.clock (ahead interval not null); insert into public.clock values ('0')").await;
    for function in ["clock_timestamp", "statement_timestamp"] {
        let replaced = format!(
            "set allow_system_table_mods = on;
             alter function pg_catalog.{function}() rename to real_{function};
             create function pg_catalog.{function}() returns timestamptz language sql volatile
               as 'select pg_catalog.real_{function}() + (select ahead from public.clock)'"
        );
        database.run(&replaced).await;
    }
    database
}

async fn set_ahead(database: &Database, ahead: &str) {
    database.run(&format!("update public.clock set ahead = '{ahead}'")).await;
}

/// The database's clock is 20 days ahead for a while. Everything is then older than it may be.
#[tokio::test]
async fn a_clock_that_jumps_ahead_removes_nothing_by_age() {
    let database = with_a_clock().await;
    // A table that no position keeps the log of.
    database.run("create table other (id int primary key)").await;
    let block = |name: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\n");
    let catalog = Catalog::of(&(block("users") + &block("other")));
    let failpoints = "maintenance.clock=time:1800000,maintenance.folder=time:200";
    catalog.track(&database, "other").await;
    let service = catalog.start(&database).with("FAILPOINTS", failpoints);
    let service = service.with("RETAIN_FILES", "7d,1").with("RETAIN_JOBS", "7d").service().await;
    let (kept, _) = service.export("full", "a").await;
    set_ahead(&database, "20 days").await;
    let jumped = eventually("the jump is seen", async || service.events("clock_jumped").pop()).await;
    let seconds = jumped["seconds"].as_i64().unwrap();
    assert!((1_727_940..1_728_060).contains(&seconds), "{jumped}");

    // The bound by count holds: of b's files one stays.
    let (counted, _) = service.export("full", "b").await;
    service.export("full", "b").await;
    until("a file goes by count", async || !service.path(&counted).exists()).await;
    // A round of the purge begins with the positions that are too old.
    let logged = "select count(*) from cdc_export.change_log where table_oid = 'other'::regclass";
    database.run("insert into other values (1)").await;
    until("a purge ends", async || database.one::<i64>(logged).await == 0).await;
    assert!(service.path(&kept).exists(), "{}", service.log());
    assert_eq!(database.one::<i64>("select count(*) from watermarks where log_lost is not null").await, 0);

    set_ahead(&database, "0").await;
    until("the clock is seen to go back", async || service.events("clock_jumped").len() == 2).await;
    database.run("update users set name = 'new' where id = 2").await;
    assert_eq!(service.export("delta", "a").await.1.ids(), [2]);
    assert_eq!(service.events("removal_by_age_begins"), Vec::<Value>::new());
}
