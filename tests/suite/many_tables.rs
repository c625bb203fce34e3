//! Many tracked tables: a start and its checks cost a fixed number of statements and of scans, however many there are.

use std::collections::BTreeMap;

use cdc_export::dataset::catalog::Catalog as Datasets;
use cdc_export::source::capture::tracking;
use serde_json::Value;
use sqlx::AssertSqlSafe;

use crate::catalog::Catalog;
use crate::harness::{Database, Service, Start, eventually};
use crate::network::{Proxy, url};
use crate::traffic::purposes;

/// The blocks of the datasets `t1` to `t{tables}`.
fn blocks(tables: usize) -> String {
    let block = |n| format!("[[dataset]]\nname = \"t{n}\"\ntable = \"t{n}\"\nupdated_at = \"at\"\n");
    (1..=tables).map(block).collect()
}

/// Makes those of the tables `t1` to `t{tables}` that are missing, tracks them, and returns their catalog.
async fn tracked(database: &Database, tables: usize) -> Catalog {
    let server: cdc_export::postgres::Database = database.options.clone().into();
    let pool = server.pool(1);
    for dataset in Datasets::from_toml(&blocks(tables)).unwrap().iter() {
        let create = format!(
            "create table if not exists public.{} (id int primary key, name text, at timestamptz not null default now())",
            dataset.name
        );
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&pool).await.unwrap();
        tracking::track(&pool, dataset).await.unwrap();
    }
    pool.close().await;
    sessions_end(database).await;
    Catalog::of(&blocks(tables))
}

/// Waits until no session of the service is left. A session counts what it has read when it ends.
async fn sessions_end(database: &Database) {
    let sessions =
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'cdc-export'";
    eventually("the sessions have ended", async || (database.one::<i64>(sessions).await == 0).then_some(())).await;
}

/// The rows of `pg_trigger` that `migrate` reads, and those that there are. `migrate` prepares a database as each start
/// does.
async fn triggers_read(database: &Database, catalog: &Catalog) -> (i64, i64) {
    let read = "select seq_tup_read + idx_tup_fetch from pg_stat_sys_tables where relid = 'pg_trigger'::regclass";
    let there: i64 = database.one("select count(*) from pg_trigger").await;
    let before: i64 = database.one(read).await;
    let (code, _, said) = catalog.command(database, &["migrate"]).await;
    assert_eq!(code, 0, "{said}");
    sessions_end(database).await;
    let read = eventually("the statistics of the command are there", async || {
        let read = database.one::<i64>(read).await - before;
        (read >= there).then_some(read)
    })
    .await;
    (read, there)
}

#[tokio::test]
async fn a_start_reads_pg_trigger_once() {
    let database = Database::new().await;
    // The planner reads a small table whole, although an index has the few rows that are asked for.
    let name = database.options.get_database().unwrap();
    database.run(&format!("alter database {name} set enable_seqscan = off")).await;
    let catalog = tracked(&database, 2).await;
    // The first one renews the functions of `users`, which another database's role owns.
    triggers_read(&database, &catalog).await;
    let (few_read, few) = triggers_read(&database, &catalog).await;
    let catalog = tracked(&database, 22).await;
    let (read, there) = triggers_read(&database, &catalog).await;
    assert_eq!((there - few, read - few_read), (100, 100));
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
async fn a_start_takes_as_many_statements_with_40_tables_as_with_4() {
    let database = Database::new().await;
    let proxy = Proxy::to(&database.options).await;
    let few = tracked(&database, 4).await;
    // The first one renews the functions of `users`, which another database's role owns.
    start(&database, &few, &proxy).await.stop().await;
    statements(&proxy);
    start(&database, &few, &proxy).await.stop().await;
    let with_few = statements(&proxy);
    let many = tracked(&database, 40).await;
    start(&database, &many, &proxy).await.stop().await;
    let with_many = statements(&proxy);
    assert!(with_few.contains_key("source.table_schema.columns"), "{with_few:?}");
    assert_eq!(with_many, with_few);
}

#[tokio::test]
async fn the_datasets_are_described_in_as_many_statements_with_40_as_with_4() {
    let database = Database::new().await;
    let proxy = Proxy::to(&database.options).await;
    let mut asked = Vec::new();
    for tables in [4, 40] {
        let catalog = tracked(&database, tables).await;
        let service = start(&database, &catalog, &proxy).await;
        statements(&proxy);
        let answer: Value = service.call("GET", "/datasets", &[]).await.json().await.unwrap();
        let items = answer["items"].as_array().unwrap();
        assert!(items.len() == tables && items.iter().all(|item| item["ready"] == true), "{answer}");
        asked.push(statements(&proxy));
        service.stop().await;
    }
    assert!(asked[0].contains_key("source.description.describe"), "{asked:?}");
    assert_eq!(asked[0], asked[1]);
}

#[tokio::test]
async fn a_track_takes_as_many_statements_with_40_tables_as_with_4() {
    let database = Database::new().await;
    let proxy = Proxy::to(&database.options).await;
    let mut asked = Vec::new();
    for tables in [4, 40] {
        let catalog = tracked(&database, tables).await;
        let track = || {
            let at_proxy = Start::plain().with("DATABASE_URL", url(&database, &proxy));
            at_proxy.with("DATASETS", catalog.path().display()).arguments(&["track", "t1"]).output()
        };
        // The first one renews the functions of `users`, which another database's role owns.
        track().await;
        statements(&proxy);
        let (code, printed, said) = track().await;
        assert_eq!((code, &*printed), (0, "The changes of t1 were captured already: nothing has changed.\n"), "{said}");
        asked.push(statements(&proxy));
    }
    assert_eq!(asked[0], asked[1]);
}
