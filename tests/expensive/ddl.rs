//! DDL between two exports: each kind of it is exact, or has its word.

#[path = "../suite/ddl/attempt.rs"]
mod attempt;

use serde_json::Value;

use crate::catalog::{Catalog, Replica, export};
use crate::ddl::attempt::{attempt, told, word};
use crate::harness::{Csv, Database};

/// A table, its dataset, and DDL between two exports of it. `{t}` is the table's name, and the prefix of the names
/// beside it.
struct Case {
    what: &'static str,
    /// Makes the table, with rows 1 to 6 by `id`.
    made: &'static str,
    /// Settings of the dataset, besides name and table.
    dataset: &'static str,
    /// Query for the rows that a consumer must have.
    rows: &'static str,
    /// Transactions, separated by `;;`.
    change: &'static str,
    /// The guard's word. Empty: an incremental and a delta are exact all the same.
    word: Option<&'static str>,
    /// SQL that a loader runs on its copy after it has read `schemaChanged`.
    loader: &'static str,
}

const fn case(what: &'static str, made: &'static str, change: &'static str) -> Case {
    Case { what, made, dataset: "", rows: "select * from {t}", change, word: None, loader: "" }
}

impl Case {
    const fn of(self, dataset: &'static str, rows: &'static str) -> Case {
        Case { dataset, rows, ..self }
    }

    const fn wants(self, word: &'static str) -> Case {
        Case { word: Some(word), ..self }
    }

    const fn loaded_by(self, loader: &'static str) -> Case {
        Case { loader, ..self }
    }
}

const NOTES: &str =
    "create table {t} (id int primary key, a text not null default 'a', b text, gone bool not null default false);
    insert into {t} select n, 'a' || n, 'b' || n, n = 6 from generate_series(1, 6) n";
const NUMBERS: &str = "create table {t} (id int primary key, n numeric(10,4), at timestamptz, c char(8), v varchar(8), other numeric(10,4));
    insert into {t} select n, n + 0.1234, '2026-01-01 00:00:00.5+00', 'abcdefgh', 'v', 0.1234 from generate_series(1, 6) n";
const PARTED: &str = "create table {t} (id int primary key, n numeric(10,4)) partition by range (id);
    create table {t}_low partition of {t} for values from (0) to (4); create table {t}_high partition of {t} for values from (4) to (99);
    insert into {t} select n, n + 0.1234 from generate_series(1, 6) n";
const MOODS: &str = "create type {t}_mood as enum ('happy', 'sad');
    create table {t} (id int primary key, mood {t}_mood); insert into {t} select n, 'sad' from generate_series(1, 6) n";

#[tokio::test]
async fn ddl_is_exact_or_has_a_word() {
    run(&[
        case("the table is written anew", NOTES, "vacuum full {t};; cluster {t} using {t}_pkey;; alter table {t} set (fillfactor = 50)"),
        case(
            "what needs no new file",
            NUMBERS,
            "alter table {t} alter n type numeric(12,4), alter v type varchar(20), alter v set not null, alter v set default 'w';
             grant select (v) on {t} to public; alter table {t} alter v set statistics 7",
        ),
        case("a column is renamed", NOTES, "alter table {t} rename a to called")
            .loaded_by("alter table replica rename a to called"),
        case("a column is added", NOTES, "alter table {t} add column c int default 7")
            .loaded_by("alter table replica add column c int default 7"),
        case(
            "what isn't in the file",
            NUMBERS,
            "alter table {t} alter other type numeric(10,1), drop column v; alter table {t} add column v text default 'new'",
        )
        .of("columns = ['id', 'n']", "select id, n from {t}"),
        case("a column is replaced", NOTES, "alter table {t} drop column a; alter table {t} add column a text not null default 'new'")
            .wants("column_retyped"),
        case("a column of a list is replaced", NOTES, "alter table {t} drop column a; alter table {t} add column a text not null default 'new'")
            .of("columns = ['a', 'id']", "select a, id from {t}")
            .wants("column_retyped"),
        case("the deleted flag is replaced", NOTES, "alter table {t} drop column gone; alter table {t} add column gone bool default false")
            .of("columns = ['id', 'b']\ndeleted = 'gone'", "select id, b from {t} where not gone")
            .wants("column_retyped"),
        case("the filter's column is replaced", NOTES, "alter table {t} drop column a; alter table {t} add column a text default 'a2'")
            .of("columns = ['id', 'b']\nfilter = \"A <> 'a2'\"", "select id, b from {t} where a <> 'a2'")
            .wants("column_retyped"),
        case("the filter's quoted column is replaced", NOTES, "alter table {t} drop column a; alter table {t} add column a text default 'a2'")
            .of("columns = ['id', 'b']\nfilter = '''\"a\" <> 'a2' '''", "select id, b from {t} where a <> 'a2'")
            .wants("column_retyped"),
        case("the key is replaced", NOTES, "alter table {t} drop column id; alter table {t} add column id serial primary key")
            .wants("column_retyped"),
        case("two columns are swapped", NOTES, "alter table {t} rename a to x; alter table {t} rename b to a; alter table {t} rename x to b")
            .wants("column_retyped"),
        case("one of two that are swapped is exported", NOTES, "alter table {t} rename a to x; alter table {t} rename b to a; alter table {t} rename x to b")
            .of("columns = ['id', 'a']", "select id, a from {t}")
            .wants("column_retyped"),
        case("another column takes a name over", NOTES, "alter table {t} rename a to old; alter table {t} rename b to a")
            .wants("column_retyped"),
        case("a narrower numeric", NUMBERS, "alter table {t} alter n type numeric(10,1)").wants("column_retyped"),
        case("a coarser time", NUMBERS, "alter table {t} alter at type timestamptz(0)").wants("column_retyped"),
        case("a shorter char", NUMBERS, "alter table {t} alter c type char(6) using left(c, 6)").wants("column_retyped"),
        case("other values of the type", NOTES, "alter table {t} alter a type text using upper(a)").wants("column_retyped"),
        case(
            "a narrower numeric of a partitioned table",
            PARTED,
            "alter table {t} alter n type numeric(10,1)",
        )
        .wants("column_retyped"),
        case(
            "a partition is written anew",
            PARTED,
            "vacuum full {t}_low;; alter table {t} alter n type numeric(12,4)",
        ),
        case(
            "a partitioned table whose partitions are written anew",
            PARTED,
            "vacuum full {t};; alter table {t} alter n type numeric(12,4)",
        )
        // The column's row in the catalog is another one, and so is a file: which of the two came by the other isn't to
        // be seen.
        .wants("column_retyped"),
        case("a label is added", MOODS, "alter type {t}_mood add value 'calm' before 'sad';; update {t} set mood = 'calm' where id = 4"),
        case("a label is renamed", MOODS, "alter type {t}_mood rename value 'sad' to 'blue'").wants("column_retyped"),
        case(
            "a label is renamed for a while",
            MOODS,
            "alter type {t}_mood rename value 'sad' to 'blue'; alter type {t}_mood rename value 'blue' to 'sad'",
        )
        .wants("column_retyped"),
        case("a label of the filter is renamed", MOODS, "alter type {t}_mood rename value 'sad' to 'x'; alter type {t}_mood rename value 'happy' to 'sad'")
            .of("columns = ['id']\nfilter = \"mood = 'sad'\"", "select id from {t} where mood = 'sad'")
            .wants("column_retyped"),
        case(
            "a label deep inside is renamed",
            "create type {t}_mood as enum ('happy', 'sad'); create domain {t}_own as {t}_mood; create type {t}_pair as (n int, moods {t}_own[]);
             create type {t}_range as range (subtype = {t}_pair);
             create table {t} (id int primary key, pairs {t}_range[]);
             insert into {t} select n, array[{t}_range(null, (n, '{sad}')::{t}_pair)] from generate_series(1, 6) n",
            "alter type {t}_mood rename value 'sad' to 'blue'",
        )
        .wants("column_retyped"),
        case(
            "an attribute is added",
            "create type {t}_pair as (a int, b int); create table {t} (id int primary key, pair {t}_pair);
             insert into {t} select n, (n, n)::{t}_pair from generate_series(1, 6) n",
            "alter type {t}_pair add attribute c text",
        )
        .wants("column_retyped"),
    ])
    .await;
}

/// A function that a filter calls is a part of the filter.
#[tokio::test]
async fn a_filter_whose_function_is_replaced_is_another_one() {
    const TABLE: &str =
        "create table {t} (id int primary key, a int); insert into {t} select n, n from generate_series(1, 6) n;
        create function public.{t}_deep(n int) returns bool immutable language plpgsql as 'begin return n > 3; end';
        create function public.{t}_f(n int) returns bool immutable language sql as 'select public.{t}_deep($1)';
        create function public.{t}_other(n int) returns bool immutable language sql as 'select true'";
    run(&[
        case(
            "it is replaced",
            TABLE,
            "create or replace function public.{t}_f(n int) returns bool immutable language sql as 'select $1 > 5'",
        )
        .of("filter = 'public.{t}_f(a)'", "select * from {t} where public.{t}_f(a)")
        .wants("dataset_changed"),
        case(
            "one that it calls is replaced",
            TABLE,
            "create or replace function public.{t}_deep(n int) returns bool immutable language plpgsql as 'begin return n > 5; end'",
        )
        .of("filter = '\"public\".{T}_F (a)'", "select * from {t} where public.{t}_f(a)")
        .wants("dataset_changed"),
        case(
            "it is an operator's",
            "create table {t} (id int primary key, a int); insert into {t} select n, n from generate_series(1, 6) n;
             create function {t}_deep(n int) returns bool immutable language plpgsql as 'begin return n > 3; end';
             create operator public.=>> (function = {t}_deep, rightarg = int)",
            "create or replace function public.{t}_deep(n int) returns bool immutable language plpgsql as 'begin return n > 5; end'",
        )
        .of("filter = 'operator(public.=>>) a'", "select * from {t} where operator(public.=>>) a")
        .wants("dataset_changed"),
        case(
            "it is a cast's",
            "create type {t}_n as (n int); create table {t} (id int primary key, a {t}_n); insert into {t} select n, row(n)::{t}_n from generate_series(1, 6) n;
             create function {t}_to(n {t}_n) returns int immutable language sql as 'select ($1).n'; create cast ({t}_n as int) with function {t}_to({t}_n) as implicit",
            "create or replace function {t}_to(n {t}_n) returns int immutable language sql as 'select -($1).n'",
        )
        .of("filter = 'a::int > 3'", "select * from {t} where a::int > 3")
        .wants("dataset_changed"),
        case(
            "another one is, and this one is what it was",
            TABLE,
            "create or replace function public.{t}_other(n int) returns bool immutable language sql as 'select false';
             create or replace function public.{t}_f(n int) returns bool immutable language sql as 'select public.{t}_deep($1)';
             alter function public.{t}_f(int) owner to current_user; grant execute on function public.{t}_f(int) to public",
        )
        .of("filter = 'public.{t}_f(a)'", "select * from {t} where public.{t}_f(a)"),
    ])
    .await;
}

/// Each in a table and a dataset of its own, of one database.
async fn run(cases: &[Case]) {
    let database = Database::empty().await;
    let named = |text: &str, at: usize| text.replace("{t}", &format!("t{at}")).replace("{T}", &format!("T{at}"));
    let mut blocks = Vec::new();
    for (at, case) in cases.iter().enumerate() {
        database.run(&named(case.made, at)).await;
        blocks.push(named(&format!("[[dataset]]\nname = '{{t}}'\ntable = '{{t}}'\n{}\n", case.dataset), at));
    }
    let catalog = Catalog::tracked(&database, &blocks).await;
    let service = catalog.start(&database).service().await;
    let mut faults = Vec::new();
    for (at, case) in cases.iter().enumerate() {
        let (table, rows) = (format!("t{at}"), named(case.rows, at));
        let replica = Replica { database: &database, source: &rows, key: &["id"] };
        replica.begin(&service, &export(&service, "full", &table, "a").await).await;
        let live = format!("c{at}");
        export(&service, "full", &table, &live).await;
        database.run(&format!("delete from {table} where id = 1")).await;
        for statement in named(case.change, at).split(";;") {
            database.run(statement).await;
        }
        database.run(&format!("delete from {table} where id = 2")).await;
        let told = told(&service, &live).await;
        let (incremental, delta) =
            (attempt(&service, "incremental", &table, &live).await, attempt(&service, "delta", &table, "a").await);
        let words = [told, word(&incremental), word(&delta)];
        if words != [case.word; 3].map(|word| word.map(str::to_owned)) {
            faults.push(format!("{}: {words:?}, not {:?}", case.what, case.word));
            continue;
        }
        if case.word.is_none() {
            if !case.loader.is_empty() {
                assert_eq!(delta["schemaChanged"], true, "{}", case.what);
                database.run(case.loader).await;
            }
            replica.apply(&service, &delta).await;
            replica.require_equal().await;
        } else {
            let full = attempt(&service, "full", &table, "a").await;
            assert_eq!(word(&full).as_deref(), case.word, "{}", case.what);
            replica.begin(&service, &full).await;
        }
        database.run(&format!("delete from {table} where id = 3")).await;
        let delta = export(&service, "delta", &table, "a").await;
        assert_eq!(word(&delta), None, "{}", case.what);
        replica.apply(&service, &delta).await;
        replica.require_equal().await;
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// The timestamp rule serves a watermark that somebody set. One that is of another column says nothing of this one.
#[tokio::test]
async fn another_column_of_times_sends_nothing_again() {
    let schema = "
        create table t (id int primary key, a int, made timestamptz, changed timestamptz, other timestamp);
        insert into t select n, n, '2026-01-01', timestamptz '2026-01-01' + n * interval '1 day', '2026-03-01' from generate_series(1, 9) n";
    let database = Database::empty_with(schema).await;
    for more in ["", "created_at = 'made'\n"] {
        let by = |times: &str| {
            let made = if times.is_empty() { "" } else { more };
            format!("[[dataset]]\nname = 't'\ntable = 't'\n{made}{times}")
        };
        let catalog = Catalog::of(&by("updated_at = 'changed'"));
        let service = catalog.serving(&database, &["t"]).await;
        for consumer in ["a", "b", "c"] {
            assert_eq!(export(&service, "full", "t", consumer).await["watermarkTo"], "2026-01-10T00:00:00.000000Z");
        }
        service.stop().await;
        // Later, earlier, none, and back: each sends what changed.
        for (at, times) in
            ["updated_at = 'other'", "updated_at = 'made'", "", "updated_at = 'other'", "updated_at = 'changed'"]
                .into_iter()
                .enumerate()
        {
            catalog.write(&by(times));
            let service = catalog.start(&database).service().await;
            for round in 0..2 {
                database.run(&format!("update t set a = a + 100, changed = '2027-01-01' where id = {}", at + 1)).await;
                for (export_type, consumer) in [("delta", "a"), ("incremental", "b")] {
                    let job = export(&service, export_type, "t", consumer).await;
                    assert_eq!(Csv::read(&service.path(&job)).ids(), [at as i64 + 1], "{times} {round} {export_type}");
                    assert_eq!(job["continuity"], Value::Null);
                    let (from, to) = (job["watermarkFrom"].as_str(), job["watermarkTo"].as_str());
                    assert!(from.is_some() && from <= to, "{job}");
                }
            }
        }
        // By hand it is obeyed as it reads, and from a full export on it is a watermark of this column.
        catalog.write(&by("updated_at = 'other'"));
        let service = catalog.start(&database).service().await;
        database.run("update watermarks set last_exported_at = '2026-02-01' where consumer_id = 'c'").await;
        assert_eq!(export(&service, "incremental", "t", "c").await["rowsExported"], 9);
        database.run("update t set a = 0 where id = 9").await;
        for consumer in ["a", "c"] {
            assert_eq!(export(&service, "incremental", "t", consumer).await["rowsExported"], 1, "{consumer}");
            assert_eq!(export(&service, "incremental", "t", consumer).await["rowsExported"], 0, "{consumer}");
        }
        service.stop().await;
        let statements =
            "delete from watermarks; update t set changed = '2026-01-01'::timestamptz + id * interval '1 day'";
        database.run(statements).await;
    }
}
