//! The cost of capture: a write's bytes of WAL and transaction ids, against a table without triggers in the same run.

use crate::catalog::Catalog;
use crate::harness::Database;
use crate::restores::cluster::Cluster;

/// The rows of each measurement.
const ROWS: i64 = 500;

/// The bytes of WAL without images of pages, and the transaction ids that statements took.
async fn cost(database: &Database, statements: &str) -> (i64, i64) {
    let now = "select array[pg_current_wal_insert_lsn() - '0/0', pg_snapshot_xmax(pg_current_snapshot())::text::numeric]::int8[]";
    let before: Vec<i64> = database.one(now).await;
    database.run(statements).await;
    let after: Vec<i64> = database.one(now).await;
    (after[0] - before[0], after[1] - before[1])
}

/// One transaction for each row.
fn one_at_a_time(statement: &str) -> String {
    format!("do $$ begin for n in 1..{ROWS} loop {statement}; commit; end loop; end $$")
}

#[tokio::test]
async fn a_deletion_costs_what_an_insertion_does() {
    // The bytes of other tests would count on a shared server.
    let mut cluster = Cluster::with(&["full_page_writes = off", "autovacuum = off"]).await;
    let database = cluster.database();
    let columns = "(id int primary key, name text)";
    for tables in ["narrow", "wide", "parts"] {
        let create = |table: &str| match tables {
            "parts" => format!(
                "create table {table} {columns} partition by range (id);
                 create table {table}_low partition of {table} for values from (0) to (100);
                 create table {table}_high partition of {table} for values from (100) to (100000)"
            ),
            // The wide rows' texts are not compressed.
            _ => format!("create table {table} {columns}; alter table {table} alter name set storage external"),
        };
        database.run(&create(tables)).await;
        database.run(&create(&format!("{tables}_plain"))).await;
    }
    let catalog = Catalog::of_tables(&["narrow", "wide", "parts"]);
    let service = catalog.serving(&database, &["narrow", "wide", "parts"]).await;
    service.stop().await;
    for (tables, length) in [("narrow", 10), ("wide", 17_000), ("parts", 10)] {
        let insert = |table: &str| one_at_a_time(&format!("insert into {table} values (n, repeat('x', {length}))"));
        let delete = |table: &str| one_at_a_time(&format!("delete from {table} where id = n"));
        let insert_all = |table: &str| {
            format!("insert into {table} select n, repeat('x', {length}) from generate_series(1, {ROWS}) n")
        };
        let delete_all = |table: &str| format!("delete from {table}");
        for (insert, delete, transactions) in [
            (&insert as &dyn Fn(&str) -> String, &delete as &dyn Fn(&str) -> String, ROWS),
            (&insert_all, &delete_all, 1),
        ] {
            let mut added = Vec::new();
            for statements in [insert, delete] {
                let plain = cost(&database, &statements(&format!("{tables}_plain"))).await;
                let with = cost(&database, &statements(tables)).await;
                assert_eq!(with.1, plain.1, "{tables}: no subtransaction");
                added.push(with.0 - plain.0);
            }
            let [by_insert, by_delete] = added[..] else { unreachable!() };
            assert!(by_delete * 10 <= by_insert * 11, "{tables}, {transactions}: {by_delete} for {by_insert} bytes");
        }
    }
    cluster.stop().await;
}
