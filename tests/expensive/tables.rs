//! Tables of random types, of keys of every type, and of as many columns as there may be.

#[path = "../suite/tables/types.rs"]
mod types;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::catalog::{Catalog, Replica, export};
use crate::harness::Csv;
use crate::plans::{log_plans, plans};
use crate::tables::types::{TYPES, database, passes, table};

#[test]
fn random_tables_come_back() {
    let config = Config { cases: 6, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let types = prop::collection::vec(0..TYPES.len(), 1..40);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let passed = runner.run(&types, |types| {
        runtime.block_on(async {
            let database = database().await;
            database.run(&table("t", &types)).await;
            passes(&database).await;
        });
        Ok(())
    });
    passed.unwrap();
}

#[tokio::test]
async fn keys_of_any_type_are_exact() {
    let database = database().await;
    database.run("create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)").await;
    let keys = [
        ("k ltree primary key", "('a.b' || n)::ltree", &["k"][..]),
        ("k citext primary key", "'Key' || n", &["k"]),
        ("k text collate ci primary key", "'Key' || n", &["k"]),
        ("k text collate \"C\" primary key", "'Key' || n", &["k"]),
        ("k char(9) primary key", "'k' || n", &["k"]),
        ("k named primary key", "'k' || n", &["k"]),
        ("k numeric primary key", "n + 0.50", &["k"]),
        ("k timestamptz primary key", "'2000-01-01Z'::timestamptz + n * interval '1.5 s'", &["k"]),
        ("k float8 primary key", "n / 3.0::float8", &["k"]),
        ("k bytea primary key", "decode(md5(n::text), 'hex')", &["k"]),
        ("k inet primary key", "('10.0.0.' || n)::inet", &["k"]),
        (
            "k citext, l numeric, m mood, primary key (l, k, m)",
            "'Key' || n, n + 0.50, 'so, so'::mood",
            &["k", "l", "m"],
        ),
    ];
    let dataset = |i: usize| format!("[[dataset]]\nname = \"t{i}\"\ntable = \"t{i}\"\n");
    let blocks: Vec<_> = (0..keys.len()).map(dataset).collect();
    for (i, (columns, values, _)) in keys.iter().enumerate() {
        // Columns that are called like what the triggers' functions have.
        let statements = format!(
            "create table t{i} ({columns}, n int, o int, tg_relid int, root int, old text, key text);
             insert into t{i} select {values}, n, n, n, n, 'old', 'key' from generate_series(1, 20) n"
        );
        database.run(&statements).await;
    }
    let catalog = Catalog::tracked(&database, &blocks).await;
    let service = catalog.start(&database).service().await;
    for (i, (columns, values, key)) in keys.iter().enumerate() {
        let (dataset, source) = (format!("t{i}"), format!("select * from t{i}"));
        let replica = Replica { database: &database, source: &source, key };
        replica.begin(&service, &export(&service, "full", &dataset, "a").await).await;
        let names: Vec<_> = key.iter().map(|name| format!("\"{name}\"")).collect();
        let names = names.join(", ");
        let statements = format!(
            "delete from t{i} where n <= 3; update t{i} set o = 0 where n in (5, 6);
             update t{i} set ({names}) = (select {values} from (select t{i}.n + 100 as n) as moved) where n in (7, 8);
             insert into t{i} ({names}, n) select {values}, n from generate_series(60, 61) n"
        );
        database.run(&statements).await;
        let delta = export(&service, "delta", &dataset, "a").await;
        replica.apply(&service, &delta).await;
        replica.require_equal().await;
        // 3 gone, 2 changed, 2 moved from one key to another, 2 new.
        assert_eq!(delta["rowsExported"], 3 + 2 + 4 + 2, "{columns}");
        assert_eq!(export(&service, "incremental", &dataset, "a").await["rowsExported"], 0, "{columns}");
    }
    // The keys are looked up in the index, which is of the column's own collation.
    let name = database.options.get_database().unwrap();
    for way in ["seqscan", "hashjoin", "mergejoin", "bitmapscan"] {
        database.run(&format!("alter database {name} set enable_{way} = off")).await;
    }
    service.stop().await;
    log_plans(&database).await;
    let service = catalog.start(&database).service().await;
    for (i, (columns, ..)) in keys.iter().enumerate() {
        database.run(&format!("update t{i} set o = 1 where n in (9, 10)")).await;
        assert_eq!(export(&service, "delta", &format!("t{i}"), "a").await["rowsExported"], 2, "{columns}");
        let index = format!("using t{i}_pkey");
        let mut plans = plans(&database, "-- source.copy.changes");
        plans.retain(|plan| plan.contains(&index));
        let plan = plans.join("\n");
        assert!(plan.matches(&index).count() >= 2, "{columns}: {plan}");
        assert!(
            plan.matches("Index Cond: (k").count() + plan.matches("Index Cond: ((k").count() >= 2 || i == 11,
            "{plan}"
        );
    }
}

#[tokio::test]
async fn a_table_of_1600_columns_comes_back() {
    let database = database().await;
    // As wide as a row may be: 8 kB hold no more.
    let column = |n| if n % 2 == 0 { format!("c{n} smallint default {n}") } else { format!("c{n} text") };
    let columns: Vec<_> = (2..=1600).map(column).collect();
    let create = format!("create table t (id smallint primary key, {})", columns.join(", "));
    database.run(&format!("{create}; insert into t (id, c3) select n, 'x' from generate_series(1, 60) n")).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"");
    let service = catalog.serving(&database, &["t"]).await;
    let replica = Replica { database: &database, source: "select * from t", key: &["id"] };
    replica.begin(&service, &export(&service, "full", "t", "a").await).await;
    replica.require_equal().await;
    database.run("delete from t where id <= 20; update t set c3 = 'y' where id > 40").await;
    // A table for the whole of it, the operation too, can't be made.
    let delta = Csv::read(&service.path(&export(&service, "delta", "t", "a").await));
    assert_eq!((delta.header.len(), delta.rows.len()), (1601, 40));
    assert_eq!(delta.rows[0][..5], ["DELETE", "1", "", "", ""]);
}
