//! Data, catalog and DDL that make Postgres refuse to read a value: each export says what to do, and none calls it a
//! defect.

use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export};
use crate::harness::{Database, Service};

const OWN_TYPES: &str = "create type mood as enum ('sad', 'happy'); create domain small as int check (value < 1000);
    create domain smalls as int[] check (true); create type pair as (a small, b text)";

/// A delta of `t` that fails: its code, its word and what it says.
async fn failed(service: &Service, export_type: &str, consumer: &str) -> (String, Value, String) {
    let job = ended(service, &format!("/exports/{export_type}"), Some(consumer), json!({ "dataset": "t" })).await;
    assert_eq!(job["status"], "failed", "{job}");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&job["error"]["code"]), job["continuity"].clone(), text(&job["error"]["detail"]))
}

/// A key that was logged under its type as it was then, what is done to the type, and whether that is seen.
#[tokio::test]
async fn a_deleted_key_that_its_type_reads_no_more_wants_a_full_export() {
    let cases = [
        ("mood", "'sad'", "delete from pg_enum where enumlabel = 'sad'"),
        ("mood[]", "'{sad}'", "delete from pg_enum where enumlabel = 'sad'"),
        ("small[]", "'{500}'", "alter domain small add constraint less check (value < 100) not valid"),
        ("pair", "'(500,x)'", "alter domain small add constraint less check (value < 100) not valid"),
    ];
    for (name, value, change) in cases {
        let database = Database::empty_with(OWN_TYPES).await;
        let other = value.replace("500", "5").replace("sad", "happy");
        let statements =
            format!("create table t (k {name} primary key, n int); insert into t values ({value}, 1), ({other}, 2)");
        database.run(&statements).await;
        let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\n");
        let service = catalog.serving(&database, &["t"]).await;
        export(&service, "full", "t", "a").await;
        database.run(&format!("delete from t where n = 1; {change}")).await;
        let (code, word, detail) = failed(&service, "delta", "a").await;
        assert_eq!((code.as_str(), &word), ("full_export_needed", &json!("column_retyped")), "{name}: {detail}");
        // A full export reads no log, and its deltas go on.
        assert_eq!(export(&service, "full", "t", "a").await["rowsExported"], 1);
        database.run("update t set n = 3").await;
        assert_eq!(export(&service, "delta", "t", "a").await["rowsExported"], 1);
    }
}

#[tokio::test]
async fn a_filter_that_fails_is_named() {
    let schema = "create function positive(n int) returns bool immutable language plpgsql as
                    $$begin if n < 0 then raise exception 'secret %', n; end if; return true; end$$;
                  create table t (id int primary key, n int); insert into t values (1, 1)";
    let database = Database::empty_with(schema).await;
    for (filter, bad, sqlstate) in [("10 / n > 0", 0, "22012"), ("public.positive(n)", -1, "P0001")] {
        let catalog = Catalog::of(&format!("[[dataset]]\nname = \"t\"\ntable = \"t\"\nfilter = \"{filter}\"\n"));
        let service = catalog.serving(&database, &["t"]).await;
        export(&service, "full", "t", sqlstate).await;
        database.run(&format!("update t set n = {bad}")).await;
        for export_type in ["full", "incremental", "delta"] {
            let (code, word, detail) = failed(&service, export_type, sqlstate).await;
            assert_eq!((code.as_str(), &word), ("dataset_mismatch", &Value::Null), "{export_type}");
            assert!(detail.contains("filter: it ends in an error") && detail.contains(sqlstate), "{detail}");
            assert!(!detail.contains("secret") && !detail.contains("-1"), "no row's values: {detail}");
        }
        // Mended, it goes on.
        database.run("update t set n = 2").await;
        assert_eq!(export(&service, "delta", "t", sqlstate).await["rowsExported"], 1);
    }
}

#[tokio::test]
async fn a_value_that_postgres_itself_cannot_write_is_no_defect_of_ours() {
    let database = Database::empty_with(OWN_TYPES).await;
    database.run("create table t (id int primary key, m mood); insert into t values (1, 'sad')").await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\n");
    let service = catalog.serving(&database, &["t"]).await;
    export(&service, "full", "t", "a").await;
    database.run("update t set id = 2; delete from pg_enum where enumlabel = 'sad'").await;
    for export_type in ["full", "incremental", "delta"] {
        let (code, _, detail) = failed(&service, export_type, "a").await;
        assert_eq!(code, "value_unreadable", "{export_type}: {detail}");
        assert!(detail.contains("`t`") && detail.contains("SQLSTATE"), "{detail}");
    }
}

#[tokio::test]
async fn a_damaged_block_is_named_with_its_table() {
    let statements = "create table t (id int primary key); insert into t select generate_series(1, 1000)";
    let (original, admin) = (Database::empty_with(statements).await, Database::empty().await);
    let file: String = original.one("select split_part(pg_relation_filepath('t'), '/', 3)").await;
    let name = original.options.get_database().unwrap();
    original.pool.close().await;
    // No block of a copy by files is in memory.
    let strategy = if admin.postgres_version().await >= 15 { "strategy file_copy" } else { "" };
    admin.run(&format!("create database {name}_copy template {name} {strategy}")).await;
    let folder = "select current_setting('data_directory') || '/base/' || oid from pg_database where datname";
    let folder: String = admin.one(&format!("{folder} = '{name}_copy'")).await;
    let file = std::fs::OpenOptions::new().write(true).open(format!("{folder}/{file}")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 24], 8192).unwrap();
    let copy = Database::at(original.options.clone().database(&format!("{name}_copy")));
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\ncapture = \"none\"");
    let service = catalog.start(&copy).service().await;
    let job = ended(&service, "/exports/full", Some("c"), json!({ "dataset": "t" })).await;
    assert_eq!(job["error"]["code"], "value_unreadable", "{job}");
    let detail = job["error"]["detail"].as_str().unwrap();
    assert!(detail.contains("a value of `t` (SQLSTATE XX001, invalid page in block 1 of relation"), "{detail}");
}
