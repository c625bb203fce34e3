//! A table that a subscription writes to: Postgres's apply workers fire no ordinary trigger.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::catalog::Catalog;
use crate::harness::{Csv, Database, Service, Start, eventually, needs_full, silent, until};
use crate::restores::cluster::Cluster;

/// A consumer's copy after its files: names by id.
#[derive(Default)]
struct Loaded(BTreeMap<String, String>);

impl Loaded {
    async fn next(&mut self, service: &Service, export_type: &str) -> (Value, usize) {
        let (job, file) = service.export(export_type, "a").await;
        self.load(&file, export_type);
        (job, file.rows.len())
    }

    fn load(&mut self, file: &Csv, export_type: &str) {
        if export_type == "full" {
            self.0.clear();
        }
        let first = usize::from(export_type == "delta");
        for row in &file.rows {
            match row[0].as_str() {
                "DELETE" => drop(self.0.remove(&row[1])),
                _ => drop(self.0.insert(row[first].clone(), row[first + 1].clone())),
            }
        }
    }

    async fn require_equal(&self, database: &Database) {
        let rows: Vec<(String, String)> = sqlx::query_as("select id::text, name::text from users where not is_deleted")
            .fetch_all(&database.pool)
            .await
            .unwrap();
        assert_eq!(self.0, rows.into_iter().collect());
    }
}

fn users(from: u32, to: u32) -> String {
    format!(
        "insert into users (id, name, email, created_at, updated_at)
         select n, 'User ' || n, n || '@example.com', '2026-01-01', '2026-01-01' from generate_series({from}, {to}) n"
    )
}

#[tokio::test]
async fn what_a_subscription_writes_is_captured_once() {
    let mut cluster = Cluster::with(&["wal_level = logical"]).await;
    let admin = cluster.database();
    let options = admin.options.clone();
    for name in ["publisher", "subscriber"] {
        admin.run(&format!("create database {name}")).await;
    }
    let (publisher, here) =
        (Database::at(options.clone().database("publisher")), Database::at(options.clone().database("subscriber")));
    let statements = format!(
        "create table users (id bigint primary key, name varchar(255), email varchar(255), created_at timestamptz,
           updated_at timestamptz, is_deleted boolean not null default false);
         create publication p for table users; {}",
        users(11, 19)
    );
    publisher.run(&statements).await;
    let service = Start::on(&here).with("SEED_ROWS", 0).service().await;
    here.run(&users(1, 3)).await;
    let mut loaded = Loaded::default();
    loaded.next(&service, "full").await;

    let host = options.get_socket().map_or(options.get_host().to_owned(), |path| path.to_str().unwrap().to_owned());
    let subscribe = |slot: &str| {
        format!(
            "create subscription s connection 'host={host} port={} user={} dbname=publisher' publication p
             with (create_slot = false, slot_name = {slot})",
            options.get_port(),
            options.get_username(),
        )
    };
    let unsubscribe = "alter subscription s disable; alter subscription s set (slot_name = none)";
    let slot = |name: &str| format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
    publisher.run(&slot("one")).await;
    here.run(&subscribe("one")).await;
    // The rows that were there, then a stream of changes.
    let arrived = async |sql: &str| {
        eventually(sql, || async { here.one::<bool>(&format!("select {sql}")).await.then_some(()) }).await;
    };
    arrived("exists (select from pg_subscription_rel where srsubstate = 'r')").await;
    let (job, rows) = loaded.next(&service, "delta").await;
    assert_eq!((rows, &job["continuity"]), (9, &Value::Null), "{job}");
    loaded.require_equal(&here).await;
    let statements = "
        update users set name = 'u' where id < 14; delete from users where id = 15; update users set id = 99 where id = 16;
        insert into users select 100, 'last', 'e', '2026-01-01', '2026-01-01'";
    publisher.run(statements).await;
    // A local writer changes rows beside the subscription.
    here.run("update users set name = 'here' where id = 1; delete from users where id = 2").await;
    arrived("exists (select from users where id = 100)").await;
    let (job, rows) = loaded.next(&service, "delta").await;
    assert_eq!((rows, &job["continuity"]), (9, &Value::Null), "{job}");
    loaded.require_equal(&here).await;
    assert_eq!(loaded.next(&service, "delta").await.1, 0);
    let twice = "select count(*) from (select from cdc_export.change_log group by xid, operation, key having count(*) > 1) twice";
    assert_eq!(here.one::<i64>(twice).await, 0);

    // A subscription of between two exports leaves no trace but the log's.
    publisher.run("update users set name = 'while' where id = 17; insert into users select 101, 'x', 'f', '2026-01-01', '2026-01-01'").await;
    arrived("exists (select from users where id = 101)").await;
    here.run(unsubscribe).await;
    here.run("drop subscription s").await;
    let (job, rows) = loaded.next(&service, "delta").await;
    assert_eq!((rows, &job["continuity"]), (2, &Value::Null), "{job}");
    loaded.require_equal(&here).await;

    // A TRUNCATE there is one here.
    here.run("delete from users").await;
    loaded.next(&service, "delta").await;
    until("the slot is free", async || {
        publisher.one::<bool>("select not active from pg_replication_slots where slot_name = 'one'").await
    })
    .await;
    publisher.run(&slot("two")).await;
    here.run(&subscribe("two")).await;
    arrived("exists (select from pg_subscription_rel where srsubstate = 'r')").await;
    loaded.next(&service, "delta").await;
    loaded.require_equal(&here).await;
    publisher.run(&format!("truncate users; {}", users(200, 202))).await;
    arrived("exists (select from users where id = 202)").await;
    needs_full(&service.ended(&service.submit("delta", "a").await).await, "truncated");
    loaded.next(&service, "full").await;
    loaded.require_equal(&here).await;

    // Tracks a table that is already subscribed.
    here.run("drop trigger cdc_export_i on users").await;
    silent(Start::on(&here).arguments(&["track", "users"]).output().await);
    loaded.next(&service, "full").await;
    publisher.run(&users(300, 309)).await;
    arrived("exists (select from users where id = 309)").await;
    assert_eq!(loaded.next(&service, "delta").await.1, 10);
    loaded.require_equal(&here).await;
    here.run(unsubscribe).await;
    here.run("drop subscription s").await;
    service.stop().await;
    cluster.stop().await;
}

/// A parallel worker may wait for ever where it writes through a partitioned table that has triggers.
#[tokio::test]
async fn parallel_workers_that_write_to_a_partitioned_table_are_warned_of() {
    let database = Database::new().await;
    let version = database.postgres_version().await;
    let is_parallel = version >= 16;
    let streaming = match version {
        16.. => ", streaming = parallel",
        14.. => ", streaming = on",
        _ => "",
    };
    // The subscription is never connected: the test itself writes down its tables.
    let name = format!("s_{}", uuid::Uuid::new_v4().simple());
    let statements = format!(
        "create table plain (id int primary key);
         create table t (id int primary key) partition by range (id); create table part partition of t default;
         create subscription {name} connection 'dbname=nowhere' publication p
           with (connect = false, slot_name = none{streaming})"
    );
    database.run(&statements).await;
    let writes_to = async |tables: &str| {
        let written = format!(
            "insert into pg_subscription_rel (srsubid, srrelid, srsubstate)
             select s.oid, c, 'r' from pg_subscription s, unnest('{tables}'::regclass[]) c where s.subname = '{name}'"
        );
        database.run(&written).await;
    };
    // Into a partition itself it may.
    writes_to("{plain,part}").await;
    let catalog = Catalog::of_tables(&["t", "plain", "users"]);
    let warning = format!(
        "cdc-export: t: table: the subscription {name} writes to it with parallel workers, which may wait for ever where a partitioned \
         table has triggers: its owner runs `alter subscription \"{name}\" set (streaming = on)`\n"
    );
    let expected = if is_parallel { warning.as_str() } else { "" };
    for dataset in ["t", "plain"] {
        catalog.track(&database, dataset).await;
    }
    let (code, _, said) = catalog.command(&database, &["datasets", "check"]).await;
    assert_eq!((code, said.as_str()), (0, ""));
    writes_to("{t}").await;
    for arguments in [["track", "t"], ["track", "plain"], ["datasets", "check"]] {
        let (code, _, said) = catalog.command(&database, &arguments).await;
        let expected = if arguments[1] == "plain" { "" } else { expected };
        assert_eq!((code, said.as_str()), (0, expected), "{arguments:?}");
    }
    let service = catalog.start(&database).service().await;
    assert_eq!(service.events("subscription_may_stall").len(), usize::from(is_parallel));
    if version >= 14 {
        database.run(&format!("alter subscription {name} set (streaming = on)")).await;
    }
    silent(catalog.command(&database, &["datasets", "check"]).await);
    service.stop().await;
    database.run(&format!("drop subscription {name}")).await;
}
