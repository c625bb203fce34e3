//! DDL between two exports: what it changes in rows that no trigger saw is said with a word, and everything else goes
//! on exactly.

mod attempt;

use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export};
use crate::ddl::attempt::{attempt, told, word};
use crate::harness::{Csv, Database};

/// One that isn't told from the row alone any more is refused, as at a start, not healed by a full export.
#[tokio::test]
async fn a_filter_is_tried_again_when_its_function_is_another_one() {
    let schema = "create table t (id int primary key, a int); insert into t select n, n from generate_series(1, 6) n;
                  create function public.f(n int) returns bool immutable language plpgsql as 'begin return n > 3; end'";
    let database = Database::empty_with(schema).await;
    let catalog = Catalog::of("[[dataset]]\nname = 't'\ntable = 't'\nfilter = 'public.f(a)'");
    let service = catalog.serving(&database, &["t"]).await;
    export(&service, "full", "t", "a").await;
    for volatile in [
        "alter function public.f(int) volatile",
        "create or replace function public.f(n int) returns bool language plpgsql as 'begin return n > random(); end'",
    ] {
        database.run(volatile).await;
        for export_type in ["delta", "incremental", "full"] {
            let path = format!("/exports/{export_type}");
            let job = ended(&service, &path, Some("a"), json!({ "dataset": "t" })).await;
            assert_eq!(job["error"]["code"], "dataset_mismatch", "{export_type} {job}");
            let detail = job["error"]["detail"].as_str().unwrap();
            assert!(detail.contains("filter: it has to be told from the row alone"), "{detail}");
        }
    }
    // As it was, it is the filter that the consumer's rows are of.
    let statements = "create or replace function public.f(n int) returns bool immutable language plpgsql as 'begin return n > 3; end'";
    database.run(statements).await;
    database.run("update t set a = 0 where id = 4").await;
    assert_eq!(export(&service, "delta", "t", "a").await["rowsExported"], 1);
}

/// A consumer that was sent rows without a column lacks its values in what doesn't change.
#[tokio::test]
async fn a_column_that_the_files_did_not_have_for_a_while_wants_a_full_export() {
    let database = Database::empty_with("create table t (id int primary key, a int, b int, at timestamptz default now()); insert into t select n, n, n from generate_series(1, 6) n")
    .await;
    for (more, capture) in [("", "triggers"), ("updated_at = 'at'\ncapture = 'timestamp'", "timestamp")] {
        let by = |columns: &str| format!("[[dataset]]\nname = '{capture}'\ntable = 't'\n{columns}\n{more}");
        let catalog = Catalog::of(&by("columns = ['id', 'a', 'b']"));
        if capture == "triggers" {
            catalog.track(&database, capture).await;
        }
        let service = catalog.start(&database).service().await;
        export(&service, "full", capture, "a").await;
        export(&service, "full", capture, "b").await;
        service.stop().await;
        catalog.write(&by("exclude = ['b', 'at']"));
        let service = catalog.start(&database).service().await;
        database.run("update t set b = 0, at = now() where id = 1").await;
        let narrow = export(&service, "delta", capture, "a").await;
        assert_eq!((&narrow["schemaChanged"], &narrow["continuity"]), (&json!(true), &Value::Null));
        service.stop().await;
        catalog.write(&by("columns = ['b', 'id', 'a']"));
        let service = catalog.start(&database).service().await;
        for export_type in ["delta", "incremental"] {
            assert_eq!(word(&attempt(&service, export_type, capture, "a").await).as_deref(), Some("dataset_changed"));
        }
        assert_eq!(told(&service, "a").await.as_deref(), Some("dataset_changed"));
        export(&service, "full", capture, "a").await;
        for consumer in ["a", "b"] {
            // The other one was away meanwhile.
            let delta = export(&service, "delta", capture, consumer).await;
            assert_eq!(delta["continuity"], Value::Null);
            let rows = Csv::read(&service.path(&delta)).rows;
            assert!(consumer == "a" || rows.iter().any(|row| row[1..3] == ["0", "1"]), "{rows:?}");
        }
        service.stop().await;
        database.run("delete from watermarks").await;
    }
}

/// A newer version may compare more than the one that saved a position: what the position lacks is adopted.
#[tokio::test]
async fn what_a_position_lacks_is_not_compared() {
    let database =
        Database::empty_with("create table t (id int primary key, a int); insert into t values (1, 1), (2, 2)").await;
    let catalog = Catalog::of("[[dataset]]\nname = 't'\ntable = 't'\nfilter = 'a < 9'");
    let service = catalog.serving(&database, &["t"]).await;
    for saved in ["null", "'{}'", "jsonb_build_object('database', guard_state ->> 'database')"] {
        export(&service, "full", "t", "a").await;
        database.run(&format!("update watermarks set guard_state = {saved}; update t set a = a + 1")).await;
        for rows in [2, 0] {
            let delta = export(&service, "delta", "t", "a").await;
            assert_eq!((&delta["continuity"], &delta["rowsExported"]), (&Value::Null, &json!(rows)), "{saved}");
        }
    }
}

/// A type is the same one under another name, in another schema, and found by another path.
#[tokio::test]
async fn a_type_or_a_schema_that_is_renamed_needs_no_full_export() {
    let schema = "create schema s; create extension citext schema s; create type s.kind as enum ('a', 'b');
                  create domain s.short as varchar(9);
                  create table t (id int primary key, kind s.kind, kinds s.kind[], short s.short, folded s.citext);
                  insert into t values (1, 'a', '{a}', 'x', 'X'), (2, 'b', '{b}', 'y', 'Y')";
    let database = Database::empty_with(schema).await;
    let name: String = database.one("select current_database()::text").await;
    let catalog = Catalog::of("[[dataset]]\nname = 't'\ntable = 'public.t'");
    catalog.track(&database, "t").await;
    let mut service = catalog.start(&database).service().await;
    export(&service, "full", "t", "a").await;
    for change in [
        "alter type s.kind rename to sort",
        "alter domain s.short rename to brief",
        "create schema other; alter type s.sort set schema other; alter domain s.brief set schema other",
        "alter extension citext set schema other",
        "alter schema other rename to another",
        &format!("alter database {name} set search_path = another, s, public"),
    ] {
        database.run(&format!("{change}; update t set short = short || 'x' where id = 1")).await;
        if change.contains("search_path") {
            let start = catalog.start(&database).sharing_output(&service);
            service.stop().await;
            service = start.service().await;
        }
        let delta = export(&service, "delta", "t", "a").await;
        assert_eq!((&delta["continuity"], &delta["rowsExported"]), (&Value::Null, &json!(1)), "{change}");
    }
}
