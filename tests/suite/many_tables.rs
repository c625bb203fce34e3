//! Many tracked tables: a start and its checks cost a fixed number of statements and of scans, however many there are.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cdc_capture::capture::Triggers;
use cdc_export::catalog::Catalog as Datasets;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::catalog::{Catalog, export};
use crate::harness::{Database, Service, Start, ends, silent, until};
use crate::network::{Proxy, url};
use crate::rights::role_apart;
use crate::traffic::purposes;

/// The blocks of the datasets `t1` to `t{tables}`.
fn blocks(tables: usize) -> String {
    let block = |n| format!("[[dataset]]\nname = \"t{n}\"\ntable = \"t{n}\"\nupdated_at = \"at\"\n");
    (1..=tables).map(block).collect()
}

/// Makes those of the tables `t1` to `t{tables}` that are missing, tracks them, and returns their catalog.
async fn tracked(database: &Database, tables: usize) -> Catalog {
    let server: cdc_export::postgres::Database = database.options.clone().into();
    let pool = server.pool();
    for dataset in Datasets::from_toml(&blocks(tables)).unwrap().iter() {
        let create = format!(
            "create table if not exists public.{} (id int primary key, name text, at timestamptz not null default now())",
            dataset.name
        );
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&pool).await.unwrap();
        Triggers(&pool).track(dataset).await.unwrap();
    }
    pool.close().await;
    sessions_end(database).await;
    Catalog::of(&blocks(tables))
}

/// Waits until no session of the service is left, and until the statistics of those that have ended are there.
///
/// A session counts what it has read when it ends. Before Postgres 15 its numbers arrive later, but in order: here a
/// last session reads a table, and when that scan is counted, all before it is.
async fn sessions_end(database: &Database) {
    let sessions = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'cdc-export%'";
    until("the sessions have ended", async || database.one::<i64>(sessions).await == 0).await;
    database.run("create table if not exists last_read ()").await;
    let scans = "select coalesce(pg_stat_get_numscans('last_read'::regclass), 0)";
    let before: i64 = database.one(scans).await;
    let mut last = PgConnection::connect_with(&database.options).await.unwrap();
    sqlx::query("select from last_read").execute(&mut last).await.unwrap();
    last.close().await.unwrap();
    until("the statistics are there", async || database.one::<i64>(scans).await > before).await;
}

/// The number of rows of a system catalog that a command reads.
async fn rows_read(database: &Database, catalog: &Catalog, table: &str, arguments: &[&str]) -> i64 {
    let read = format!("select seq_tup_read + idx_tup_fetch from pg_stat_sys_tables where relid = '{table}'::regclass");
    let before: i64 = database.one(&read).await;
    ends(catalog.command(database, arguments).await, 0, "");
    sessions_end(database).await;
    database.one::<i64>(&read).await - before
}

#[tokio::test]
async fn a_start_reads_pg_trigger_once() {
    let database = Database::new().await;
    // The planner reads a small table whole, although an index has the few rows that are asked for.
    let name = database.options.get_database().unwrap();
    database.run(&format!("alter database {name} set enable_seqscan = off")).await;
    // `migrate` prepares a database like each start.
    let read = async |catalog: &_| rows_read(&database, catalog, "pg_trigger", &["migrate"]).await;
    let catalog = tracked(&database, 2).await;
    // The first one renews the functions of `users`, which another database's role owns.
    read(&catalog).await;
    let few = read(&catalog).await;
    assert_eq!(read(&tracked(&database, 22).await).await - few, 20 * 5, "each table has five triggers");
}

/// Also without statistics, which the catalogs of a new database don't have. The planner then expects few functions.
#[tokio::test]
async fn a_look_at_a_table_reads_the_functions_of_its_own_triggers_only() {
    let database = Database::new().await;
    let read = async |catalog: &_| rows_read(&database, catalog, "pg_proc", &["datasets", "check"]).await;
    let few = read(&tracked(&database, 10).await).await;
    let many = read(&tracked(&database, 40).await).await;
    let more = (many - few) / 30;
    assert!(more < 50, "{more} rows for each more table, which has five triggers: {few} and {many}");
}

/// Starts the API behind a proxy.
async fn start(database: &Database, catalog: &Catalog, proxy: &Proxy) -> Service {
    let start = Start::plain().with("DATABASE_URL", url(database, proxy)).with("DATASETS", catalog.path().display());
    start.arguments(&["serve", "--no-workers"]).service().await
}

/// Returns the number of executions of each statement about the tables since the last call.
fn statements(proxy: &Proxy) -> BTreeMap<String, usize> {
    let mut trips = proxy.traffic.take();
    trips.retain(|trip| trip.statements.iter().any(|name| name.starts_with("source.")));
    purposes(&trips)
}

#[tokio::test]
async fn a_start_a_description_and_a_track_take_as_many_statements_with_40_tables_as_with_4() {
    let database = Database::new().await;
    let proxy = Proxy::to(&database.options).await;
    let mut asked = Vec::new();
    for tables in [4, 40] {
        let catalog = tracked(&database, tables).await;
        // The first one renews the functions of `users`, which another database's role owns.
        start(&database, &catalog, &proxy).await.stop().await;
        statements(&proxy);
        start(&database, &catalog, &proxy).await.stop().await;
        let at_start = statements(&proxy);
        assert!(at_start.contains_key("source.table_schema.columns"), "{at_start:?}");

        let service = start(&database, &catalog, &proxy).await;
        statements(&proxy);
        let answer: Value = service.call("GET", "/datasets", &[]).await.json().await.unwrap();
        let items = answer["items"].as_array().unwrap();
        assert!(items.len() == tables && items.iter().all(|item| item["ready"] == true), "{answer}");
        let described = statements(&proxy);
        assert!(described.contains_key("source.description.describe"), "{described:?}");
        service.stop().await;

        let track = || {
            let at_proxy = Start::plain().with("DATABASE_URL", url(&database, &proxy));
            at_proxy.with("DATASETS", catalog.path().display()).arguments(&["track", "t1"]).output()
        };
        track().await;
        statements(&proxy);
        let (code, printed, said) = track().await;
        assert_eq!((code, &*printed), (0, "The changes of t1 were captured already: nothing has changed.\n"), "{said}");
        asked.push([at_start, described, statements(&proxy)]);
    }
    assert_eq!(asked[0], asked[1]);
}

/// Three tables that nobody tracks, and their catalog.
async fn untracked() -> (Database, Catalog) {
    let database =
        Database::new_with("create table t1 (id int primary key, at timestamptz not null default now())").await;
    database.run("create table t2 (like t1 including all); create table t3 (like t1 including all)").await;
    (database, Catalog::of(&blocks(3)))
}

fn captured(name: &str) -> String {
    format!("The changes of {name} are captured from now on: `{name}` can be exported.\n")
}

#[tokio::test]
async fn a_locked_table_keeps_no_other_from_being_tracked_or_untracked() {
    let (database, catalog) = untracked().await;
    let lock = || database.open("lock table t2 in row exclusive mode");
    let busy = "t2: `t2` is too busy: process";
    let impatient = |command| {
        let start = catalog.start(&database).with("FAILPOINTS", "capture.wait=time:0");
        start.arguments(&[command, "t1", "t2", "t3"]).output()
    };
    let held = lock().await;
    let (printed, said) = ends(impatient("track").await, 1, busy);
    assert_eq!(printed, captured("t1") + &captured("t3"), "{said}");
    assert!(!said.contains("t1") && !said.contains("t3"), "{said}");
    held.rollback().await.unwrap();
    let (code, printed, said) = catalog.command(&database, &["track", "t2", "t2"]).await;
    assert_eq!((code, printed), (0, captured("t2")), "{said}");

    let held = lock().await;
    let (printed, _) = ends(impatient("untrack").await, 1, busy);
    let lines: Vec<_> = printed.lines().map(|line| line.split(" are no").next().unwrap()).collect();
    assert_eq!(lines, ["The changes of t1", "The changes of t3"]);
    held.rollback().await.unwrap();
}

#[tokio::test]
async fn a_table_that_is_busy_is_tracked_or_untracked_after_the_others() {
    let (database, catalog) = untracked().await;
    for (command, is_tracked, printed) in
        [("track", true, captured("t2") + &captured("t1")), ("untrack", false, String::new())]
    {
        let held = database.open("lock table t1 in row exclusive mode").await;
        let release = async {
            let tracked = "select exists (select from cdc_export.tracked where table_name = 't2')";
            until("the other one is done", async || database.one::<bool>(tracked).await == is_tracked).await;
            held.rollback().await.unwrap();
        };
        let arguments = [command, "t1", "t2"];
        let (ended, ()) = tokio::join!(catalog.command(&database, &arguments), release);
        assert!(silent(ended).starts_with(&printed));
    }
}

#[tokio::test]
async fn all_datasets_that_need_triggers_are_tracked_by_one_command() {
    let (database, catalog) = untracked().await;
    let by_time = "[[dataset]]\nname = \"by-time\"\ntable = \"t1\"\nupdated_at = \"at\"\ncapture = \"timestamp\"\n";
    catalog.write(&(blocks(3) + by_time));
    let (code, printed, said) = catalog.command(&database, &["track", "--all"]).await;
    let memory =
        "A session that writes to these tables keeps about 300 kB of memory for each of them, until it ends.\n";
    assert_eq!((code, printed), (0, captured("t1") + &captured("t2") + &captured("t3") + memory), "{said}");
    let (code, printed, _) = catalog.command(&database, &["track", "--all"]).await;
    assert_eq!((code, printed.matches("nothing has changed.").count()), (0, 3), "{printed}");
    for arguments in [&["track"][..], &["track", "--all", "t1"], &["untrack", "t1", "--all"]] {
        assert_eq!(catalog.command(&database, arguments).await.0, 2, "{arguments:?}");
    }
}

#[tokio::test]
async fn a_dataset_that_does_not_fit_keeps_all_from_being_tracked() {
    let (database, catalog) = untracked().await;
    database.run("drop table t2").await;
    let (code, printed, said) = catalog.command(&database, &["track", "--all"]).await;
    assert!((code, &*printed) == (2, "") && said.contains("there is no table `t2`"), "{code} {printed} {said}");
    assert_eq!(catalog.command(&database, &["track", "t1", "t3"]).await.0, 0);
}

#[tokio::test]
async fn a_table_that_is_gone_hidden_or_locked_leaves_the_descriptions_of_the_others_as_they_are() {
    let (database, _) = untracked().await;
    let schema =
        "create table parts (id int, at timestamptz, n int generated always as (id + 1) stored, primary key (id))
               partition by range (id);
             create table part partition of parts for values from (0) to (9)";
    database.run(schema).await;
    let more = "[[dataset]]\nname = \"parts\"\ntable = \"parts\"\n[[dataset]]\nname = \"hidden\"\ntable = \"hid.t\"\n";
    let catalog = Catalog::of(&(blocks(3) + more));
    database.run("create schema hid; create table hid.t (id int primary key)").await;
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    let role = role_apart(&database).await;
    database.run(&format!("revoke select on t3 from {role}")).await;
    let start = catalog.start(&database).with("DATABASE_URL", database.url_as(&role, "pass"));
    let service = start.arguments(&["serve", "--no-workers"]).service().await;
    database.run("drop table t2").await;
    let held = database.open("lock table t1, part in access exclusive mode").await;
    let answer: Value = service.call("GET", "/datasets", &[]).await.json().await.unwrap();
    let items = answer["items"].as_array().unwrap();
    let problem = |item: &Value| item["problems"][0].as_str().unwrap_or_default().to_owned();
    let problems: Vec<_> = items.iter().map(problem).collect();
    assert_eq!((&*problems[0], &*problems[3]), ("", ""), "{answer}");
    assert!(problems[1].starts_with("table: there is no table `t2`"), "{answer}");
    assert!(problems[2].contains("grant select on"), "{answer}");
    assert!(problems[4].contains("grant usage on schema"), "{answer}");
    held.rollback().await.unwrap();
}

#[tokio::test]
async fn a_look_that_takes_long_is_answered_with_the_one_before() {
    let database = Database::new().await;
    let catalog = tracked(&database, 1).await;
    let service = catalog.start(&database).with("FAILPOINTS", "service.patience=time:40").service().await;
    export(&service, "full", "t1", "a").await;
    let look = async || {
        let page: Value = service.ask("GET", "/consumers", &[]).await.json().await.unwrap();
        (page["items"][0]["state"].clone(), page["items"][0]["asOf"].as_str().unwrap().to_owned())
    };
    let (state, mut as_of) = look().await;
    assert_eq!(state, "fresh");
    let write = "lock table t1 in access exclusive mode; insert into t1 values (1)";
    let writer = database.open(write).await;
    for _ in 0..3 {
        let asked = Instant::now();
        let (state, last) = look().await;
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        // A look that had ended before the lock may be newer.
        assert!(state == "fresh" && last >= as_of, "{state} {last}");
        as_of = last;
    }
    // Before an earlier look, only the state is missing.
    let newcomer = catalog.start(&database).sharing_output(&service).service().await;
    let page: Value = newcomer.ask("GET", "/consumers", &[]).await.json().await.unwrap();
    assert_eq!((&page["items"][0]["consumerId"], &page["items"][0]["state"]), (&"a".into(), &Value::Null));
    newcomer.stop().await;
    writer.commit().await.unwrap();
    until("a new look", async || look().await.1 > as_of).await;
}
