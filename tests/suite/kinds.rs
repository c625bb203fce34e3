//! Each kind of table: the check, `track` and the requests say the same of it, and the remedy that they name ends in an
//! export.

use serde_json::{Value, json};

use crate::catalog::{Catalog, export, post};
use crate::harness::{Database, ends};

const TABLES: &str = "
    create extension file_fdw; create server files foreign data wrapper file_fdw; create type pair as (id int, n int);
    create table plain (id int primary key); insert into plain values (1);
    create table typed of pair (primary key (id)); insert into typed values (1, 1);
    create table parts (id int primary key) partition by range (id);
    create table part partition of parts default; insert into parts values (1);
    create table mixed (id int primary key) partition by range (id);
    create unlogged table mixed_part partition of mixed default; insert into mixed values (1);
    create table strange (id int not null) partition by range (id);
    create foreign table strange_part partition of strange default server files options (filename '/dev/null');
    create table parent (id int primary key); insert into parent values (1);
    create table child (primary key (id)) inherits (parent); insert into child values (2);
    create foreign table remote (id int) server files options (filename '/dev/null');
    create view seen as select * from plain;
    create materialized view daily as select * from plain;
    create table keyless (id int); insert into keyless values (1), (1);
    create unlogged table cache (id int primary key); insert into cache values (1)";

/// The tables that `track` takes.
const CAPTURED: [&str; 3] = ["plain", "typed", "parts"];

/// The others: what is said of each, and how many rows `capture = \"none\"` exports.
const REFUSED: [(&str, &str, i64); 10] = [
    ("part", "`public.part` is a partition: name `public.parts`, whose partition it is", 1),
    ("mixed", "`public.mixed` is a table with a partition that is unlogged or foreign", 1),
    ("child", "`public.child` is a table that inherits from another", 1),
    ("cache", "`public.cache` is an unlogged table, which a crash empties", 1),
    ("parent", "`parent` is a table from which others inherit", 2),
    ("strange", "`strange` has no primary key", 0),
    ("keyless", "`keyless` has no primary key", 2),
    ("remote", "`remote` is a foreign table", 0),
    ("seen", "`seen` is a view", 1),
    ("daily", "`daily` is a materialized view", 1),
];

/// The first of the refused ones fit their datasets: the start takes them, and each request for a consumer is refused.
const STARTED: usize = 4;

fn block(table: &str, capture: &str) -> String {
    format!("[[dataset]]\nname = \"{table}\"\ntable = \"{table}\"\n{capture}\n")
}

#[tokio::test]
async fn the_check_and_track_say_the_same_of_a_table_and_name_the_way_to_an_export() {
    let database = Database::empty_with(TABLES).await;
    for table in CAPTURED {
        let catalog = Catalog::of(&block(table, ""));
        let (_, said) = ends(catalog.command(&database, &["datasets", "check"]).await, 0, "");
        assert!(said.contains(&format!("`cdc-export track {table}` comes before exports")), "{said}");
        ends(catalog.command(&database, &["track", table]).await, 0, "");
        ends(catalog.command(&database, &["datasets", "check"]).await, 0, "");
    }
    for (table, why, _) in REFUSED {
        let catalog = Catalog::of(&block(table, ""));
        for arguments in [&["datasets", "check"][..], &["track", table]] {
            let (code, _, said) = catalog.command(&database, arguments).await;
            let line = said.lines().find(|line| line.contains(why)).unwrap_or_else(|| panic!("{table}: {said}"));
            let is_way = line.contains("capture = \"none\"") || line.contains("name `public.parts`");
            assert!(code != 0 && is_way && !said.contains(&format!("cdc-export track {table}")), "{code} {said}");
        }
        // It drafts what it can export.
        let (drafted, _) =
            ends(catalog.command(&database, &["datasets", "add", table, "--name", "draft"]).await, 0, "");
        assert!(drafted.contains("\ncapture = \"none\""), "{drafted}");
    }
    // A temporary table is another session's.
    let catalog = Catalog::of(&block("scratch", ""));
    ends(catalog.command(&database, &["datasets", "check"]).await, 2, "there is no table `scratch`");
}

#[tokio::test]
async fn a_request_names_the_way_to_an_export_of_a_table_that_cant_be_captured() {
    let database = Database::empty_with(TABLES).await;
    let started = &REFUSED[..STARTED];
    let catalog = Catalog::of(&started.iter().map(|(table, ..)| block(table, "")).collect::<String>());
    let service = catalog.start(&database).service().await;
    for (table, why, _) in started {
        for export_type in ["full", "incremental", "delta"] {
            let path = format!("/exports/{export_type}");
            let answer = post(&service, &path, Some("c"), &json!({ "dataset": table })).await;
            assert_eq!(answer.status(), 409, "{table}");
            let problem: Value = answer.json().await.unwrap();
            assert_eq!(problem["code"], "not_tracked", "{problem}");
            assert!(problem["detail"].as_str().unwrap().starts_with(why), "{problem}");
        }
        let described = service.get(&format!("/datasets/{table}")).await;
        assert!(described["problems"].to_string().contains(why), "{described}");
    }
    drop(service);
    let catalog = Catalog::of(&REFUSED.map(|(table, ..)| block(table, "capture = \"none\"")).concat());
    ends(catalog.command(&database, &["datasets", "check"]).await, 0, "");
    let service = catalog.start(&database).service().await;
    for (table, _, rows) in REFUSED {
        assert_eq!(export(&service, "full", table, "c").await["rowsExported"], rows, "{table}");
    }
}

/// Without the rows of the tables that inherit, a file would not be of the table.
#[tokio::test]
async fn a_table_from_which_others_inherit_has_no_export_by_its_timestamps() {
    let statements = "create table parent (id int primary key, at timestamptz default now()); create table child () inherits (parent)";
    let database = Database::empty_with(statements).await;
    let catalog = Catalog::of(&block("parent", "updated_at = \"at\"\ncapture = \"timestamp\""));
    let why = "`parent` is a table from which others inherit: capture = \"none\" makes full exports of it";
    ends(catalog.command(&database, &["datasets", "check"]).await, 2, why);
}
