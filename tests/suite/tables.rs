//! Tables of every kind through whole exports: what a consumer restores is what the source has.

mod types;

use serde_json::{Value, json};

use crate::catalog::{Catalog, Replica, export};
use crate::harness::{Csv, Database};
use crate::tables::types::{TYPES, database, passes, table};

#[tokio::test]
async fn every_type_comes_back_through_full_exports_and_deltas() {
    let database = database().await;
    database.run(&table("t", &(0..TYPES.len()).collect::<Vec<_>>())).await;
    passes(&database).await;
}

#[tokio::test]
async fn no_setting_of_the_role_changes_a_value() {
    let mut database = database().await;
    database.run(&table("t", &(0..TYPES.len()).collect::<Vec<_>>())).await;
    database
        .run(
            "alter table t drop constraint t_pkey, add names text[] not null default '{a,NULL,\"NULL\",\"\"}', add primary key (id, names)",
        )
        .await;
    database.set_otherwise().await;
    passes(&database).await;
}

#[tokio::test]
async fn what_postgres_writes_is_written_as_copy_does() {
    let database = database().await;
    database
        .run(
            "create table t (id int primary key, padded char(4), nothing pair, host inet);
             insert into t values (1, 'a', row(null, null), '10.0.0.1'), (2, null, null, null)",
        )
        .await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"");
    catalog.track(&database, "t").await;
    let service = catalog.start(&database).service().await;
    let job = export(&service, "full", "t", "a").await;
    let file = std::fs::read_to_string(service.path(&job)).unwrap();
    assert_eq!(file, "id,padded,nothing,host\n1,a   ,\"(,)\",10.0.0.1\n2,,,\n");
    service.stop().await;
}

#[tokio::test]
async fn tables_may_be_called_anything() {
    let database = database().await;
    let names = ["100%", "o'clock", "a$$b", "a\"b", "select", "Ünï.cödé"];
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let block = |(i, name): (usize, &&str)| {
        format!("[[dataset]]\nname = \"t{i}\"\ntable = {}\n", toml::Value::String(quoted(name)))
    };
    let blocks: Vec<_> = names.iter().enumerate().map(block).collect();
    for name in names {
        let (key, table) = (quoted("k$f$ %I"), quoted(name));
        database
            .run(&format!("create table {table} ({key} int primary key); insert into {table} values (1), (2)"))
            .await;
    }
    let catalog = Catalog::tracked(&database, &blocks).await;
    let service = catalog.start(&database).service().await;
    for (i, name) in names.into_iter().enumerate() {
        export(&service, "full", &format!("t{i}"), "a").await;
        database.run(&format!("delete from {} where true", quoted(name))).await;
        assert_eq!(export(&service, "delta", &format!("t{i}"), "a").await["rowsExported"], 2, "{name}");
    }
    service.stop().await;
}

#[tokio::test]
async fn partitions_generated_columns_and_no_rows_are_no_matter() {
    let database = database().await;
    database
        .run(
            "create table t (id int, region text, double int generated always as (id * 2) stored, primary key (id, region))
               partition by list (region);
             create table t_a partition of t for values in ('a'); create table t_rest partition of t default",
        )
        .await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"");
    catalog.track(&database, "t").await;
    let service = catalog.start(&database).service().await;
    let replica = Replica { database: &database, source: "select * from t", key: &["id", "region"] };
    let empty = export(&service, "full", "t", "a").await;
    assert_eq!(Csv::read(&service.path(&empty)).header, ["id", "region", "double"]);
    assert_eq!((&empty["rowsExported"], &empty["watermarkTo"]), (&json!(0), &Value::Null));
    database
        .run("insert into t select n, case when n % 2 = 0 then 'a' else 'b' end from generate_series(1, 20) n")
        .await;
    replica.begin(&service, &export(&service, "full", "t", "a").await).await;
    // From one partition to the other, directly into one, and out of one.
    database
        .run(
            "update t set region = 'a' where id = 1; insert into t_a values (30, 'a'); delete from t_rest where id = 3",
        )
        .await;
    let delta = export(&service, "delta", "t", "a").await;
    replica.apply(&service, &delta).await;
    replica.require_equal().await;
    let file = Csv::read(&service.path(&delta));
    let mut seen: Vec<_> = file.rows.iter().map(|row| format!("{} {}{}", row[0], row[1], row[2])).collect();
    seen.sort();
    assert_eq!(seen, ["DELETE 1b", "DELETE 3b", "INSERT 1a", "INSERT 30a"]);
    service.stop().await;
}

#[tokio::test]
async fn a_role_that_may_just_read_exports_what_its_owner_tracked() {
    let database = Database::empty().await;
    let role = format!("exporter_{}", uuid::Uuid::new_v4().simple());
    database
        .run(&format!(
            "create schema sales; create table sales.orders (id int primary key, total int);
             insert into sales.orders select n, n from generate_series(1, 10) n;
             create role {role} login password 'pass'; revoke all on schema public from public"
        ))
        .await;
    let catalog = Catalog::of("[[dataset]]\nname = \"orders\"\ntable = \"sales.orders\"");
    // The owner's part; after it the service needs no right but these.
    catalog.track(&database, "orders").await;
    let documented = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/DATASETS.md")).unwrap();
    let (_, grants) = documented.split_once("```sql\ngrant").unwrap();
    let (grants, _) = grants.split_once("```").unwrap();
    database.run(&format!("grant{grants}").replace("exporter", &role)).await;
    let start = catalog.start(&database).with("DATABASE_URL", database.url_as(&role, "pass"));
    let service = start.service().await;
    let replica = Replica { database: &database, source: "select * from sales.orders", key: &["id"] };
    replica.begin(&service, &export(&service, "full", "orders", "a").await).await;
    database.run("delete from sales.orders where id = 3; update sales.orders set total = 0 where id = 4").await;
    replica.apply(&service, &export(&service, "delta", "orders", "a").await).await;
    replica.require_equal().await;
    // Who writes to the table needs no right on the log.
    let writer = sqlx::PgPool::connect(&database.url_as(&role, "pass")).await.unwrap();
    assert!(sqlx::query("delete from sales.orders").execute(&writer).await.is_err());
    database
        .run(&format!(
            "grant delete on sales.orders to {role}; revoke all on all tables in schema cdc_export from {role}"
        ))
        .await;
    sqlx::query("delete from sales.orders where id = 5").execute(&writer).await.unwrap();
    writer.close().await;
    assert_eq!(
        database.one::<i64>("select count(*) from cdc_export.change_log where key = '5' and operation = 'D'").await,
        1
    );
    service.signal(nix::sys::signal::Signal::SIGKILL);
    database.run(&format!("drop owned by {role} cascade; drop role {role}")).await;
}
