//! Generated columns: stored ones, and virtual ones of Postgres 18.

use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export};
use crate::harness::{Csv, Database, Service};

/// A table with a generated column `n2`, tracked and exported once by the consumer `a`.
async fn exported(table: &str, more: &str) -> (Database, Service) {
    let database = Database::empty_with(table).await;
    let catalog = Catalog::of(&format!("[[dataset]]\nname = \"t\"\ntable = \"t\"\n{more}"));
    let service = catalog.serving(&database, &["t"]).await;
    export(&service, "full", "t", "a").await;
    (database, service)
}

/// The rows of an export in the order of their ids.
fn rows(service: &Service, job: &Value) -> Vec<String> {
    let mut rows: Vec<_> = Csv::read(&service.path(job)).rows.iter().map(|row| row.join(",")).collect();
    rows.sort_unstable();
    rows
}

#[tokio::test]
async fn a_stored_column_is_as_the_table_has_it() {
    let table = "create table t (id int primary key, n int, n2 int generated always as (n * 2) stored);
                 insert into t select g, g from generate_series(1, 3) g";
    let (database, service) = exported(table, "").await;
    database.run("update t set n = 20 where id = 2; delete from t where id = 3; insert into t values (4, 4)").await;
    assert_eq!(rows(&service, &export(&service, "incremental", "t", "a").await), ["2,20,40", "4,4,8"]);
    assert_eq!(rows(&service, &export(&service, "delta", "t", "a").await), ["DELETE,3,,"]);
}

/// `SET EXPRESSION` of one partition rewrites that partition alone.
#[tokio::test]
async fn another_expression_of_one_partition_wants_a_full_export() {
    let table =
        "create table t (id int primary key, n int, n2 int generated always as (n * 2) stored) partition by range (id);
                 create table low partition of t for values from (0) to (10);
                 create table high partition of t for values from (10) to (20);
                 insert into t select g, g from generate_series(1, 13) g";
    let (database, service) = exported(table, "").await;
    if database.postgres_version().await < 17 {
        return service.stop().await;
    }
    database.run("alter table low alter column n2 set expression as (n * 3)").await;
    for export_type in ["incremental", "delta"] {
        let job = ended(&service, &format!("/exports/{export_type}"), Some("a"), json!({"dataset": "t"})).await;
        let found = (&job["error"]["code"], &job["continuity"]);
        assert_eq!(found, (&json!("full_export_needed"), &json!("column_retyped")), "{job}");
    }
    assert!(rows(&service, &export(&service, "full", "t", "a").await).contains(&"9,9,27".to_owned()));
    // A partition that comes or goes has nothing to be compared with.
    database.run("create table more partition of t for values from (20) to (30); insert into t values (20, 1)").await;
    let delta = export(&service, "delta", "t", "a").await;
    assert_eq!((rows(&service, &delta), &delta["continuity"]), (vec!["INSERT,20,1,2".to_owned()], &Value::Null));
}

const VIRTUAL: &str = "create table t (id int primary key, n int, n2 int generated always as (n * 2) virtual);
                       insert into t select g, g from generate_series(1, 5) g";

#[tokio::test]
async fn a_virtual_column_is_as_a_reader_sees_it() {
    if Database::empty().await.postgres_version().await < 18 {
        return;
    }
    let (database, service) = exported(VIRTUAL, "").await;
    let full = export(&service, "full", "t", "b").await;
    assert_eq!(rows(&service, &full), ["1,1,2", "2,2,4", "3,3,6", "4,4,8", "5,5,10"]);
    database.run("update t set n = 20 where id = 2; delete from t where id = 3; insert into t values (6, 6)").await;
    assert_eq!(rows(&service, &export(&service, "incremental", "t", "a").await), ["2,20,40", "6,6,12"]);
    let delta = export(&service, "delta", "t", "a").await;
    assert_eq!(rows(&service, &delta), ["DELETE,3,,"]);
    database.run("alter table t alter column n2 set expression as (n * 3)").await;
    let job = ended(&service, "/exports/delta", Some("a"), json!({"dataset": "t"})).await;
    assert_eq!(job["continuity"], "column_retyped", "{job}");
}

/// A filter, `deleted` and `updated_at` read the value as the table has it.
#[tokio::test]
async fn a_virtual_column_may_decide_which_rows_are_exported() {
    if Database::empty().await.postgres_version().await < 18 {
        return;
    }
    let (database, service) = exported(VIRTUAL, "filter = \"n2 >= 6\"\n").await;
    database.run("update t set n = 7 where id = 1; update t set n = 1 where id = 4; delete from t where id = 5").await;
    let delta = export(&service, "delta", "t", "a").await;
    assert_eq!(
        rows(&service, &delta),
        ["DELETE,4,,", "DELETE,5,,", "INSERT,1,7,14"].map(|row| row.replace("INSERT", "UPDATE"))
    );
    service.stop().await;

    let table = "create table t (id int primary key, state text, changed timestamptz not null default now(),
                   gone boolean generated always as (state = 'gone') virtual,
                   at timestamptz generated always as (changed) virtual);
                 insert into t (id, state) values (1, 'here'), (2, 'here'), (3, 'gone')";
    let (database, service) = exported(table, "deleted = \"gone\"\nupdated_at = \"at\"\ncolumns = [\"id\"]\n").await;
    let full = export(&service, "full", "t", "b").await;
    assert_eq!(rows(&service, &full), ["1", "2"]);
    assert!(full["watermarkTo"].is_string(), "{full}");
    database.run("update t set state = 'gone', changed = now() where id = 1").await;
    assert_eq!(rows(&service, &export(&service, "delta", "t", "a").await), ["DELETE,1"]);
}

/// Postgres refuses a virtual column in a key, so that only a stored one can be there.
#[tokio::test]
async fn a_stored_column_may_be_the_key() {
    let table = "create table t (n int not null, id int generated always as (n * 10) stored primary key);
                 insert into t select g from generate_series(1, 3) g";
    let (database, service) = exported(table, "").await;
    database.run("update t set n = 7 where id = 10; delete from t where id = 20").await;
    assert_eq!(rows(&service, &export(&service, "delta", "t", "a").await), ["DELETE,,10", "DELETE,,20", "UPDATE,7,70"]);
}
