//! Many tracked tables: a start and its checks cost a fixed number of statements and of scans, however many there are.

use cdc_export::dataset::catalog::Catalog as Datasets;
use cdc_export::source::capture::tracking;
use sqlx::AssertSqlSafe;

use crate::catalog::Catalog;
use crate::harness::{Database, eventually};

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
    // A session counts what it read at its end.
    let sessions =
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'cdc-export'";
    eventually("the sessions have ended", async || (database.one::<i64>(sessions).await == 0).then_some(())).await;
    Catalog::of(&blocks(tables))
}

/// The rows of `pg_trigger` that `migrate` reads, and those that there are. `migrate` prepares a database as each start
/// does.
async fn triggers_read(database: &Database, catalog: &Catalog) -> (i64, i64) {
    let read = "select seq_tup_read + idx_tup_fetch from pg_stat_sys_tables where relid = 'pg_trigger'::regclass";
    let there: i64 = database.one("select count(*) from pg_trigger").await;
    let before: i64 = database.one(read).await;
    let (code, _, said) = catalog.command(database, &["migrate"]).await;
    assert_eq!(code, 0, "{said}");
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
