//! `apply`: a table of another Postgres equals the source after each export, each applied once, whatever is killed and
//! whoever else applies.

pub(crate) mod pair;
mod together;
mod trust;

use std::path::Path;

use sqlx::ConnectOptions;

use crate::apply::pair::{DATASET, Pair, rows};
use crate::catalog::{Catalog, export};
use crate::harness::{Database, Start, eventually, far, reachable_folder};

const SIMPLE: &str = "create table t (id bigint primary key, name text, at timestamptz default now());
                      insert into t select g, 'n' || g from generate_series(1, 50) g";

#[tokio::test]
async fn the_copy_equals_the_source_after_each_export() {
    let pair = Pair::of(SIMPLE).await;
    assert_eq!(pair.applied(&[]).await, ["delta 1  50 rows written, 0 deleted"]);
    pair.require_equal("the first").await;
    pair.source
        .run("update t set name = 'x' where id < 4; delete from t where id > 40; insert into t values (100, null), (101, '')")
        .await;
    assert_eq!(pair.applied(&[]).await, ["delta 2  5 rows written, 10 deleted"]);
    pair.require_equal("a delta").await;
    assert_eq!(pair.applied(&["--request", "none"]).await, Vec::<String>::new());

    // What others asked for, of all types, in order. Nothing is written that is there as it is.
    pair.source.run("update t set name = 'y' where id = 5").await;
    for kind in ["incremental", "full", "delta"] {
        export(&pair.service, kind, "t", "a").await;
    }
    pair.source.run("update t set id = 200 where id = 6").await;
    let lines = pair.applied(&[]).await;
    assert_eq!(
        lines,
        [
            "incremental 3  1 rows written, 0 deleted",
            "full 4  0 rows written, 0 deleted",
            "delta 5  0 rows written, 0 deleted",
            "delta 6  1 rows written, 1 deleted"
        ]
    );
    pair.require_equal("several").await;

    // A full export makes good what somebody did to the copy. What is applied may be acknowledged.
    pair.target.run("delete from t where id < 10; update t set name = 'mine'; insert into t values (-1)").await;
    export(&pair.service, "full", "t", "a").await;
    let lines = pair.applied(&["--full", "truncate", "--ack"]).await;
    assert_eq!(lines.len(), 2, "{lines:?}");
    let consumers: serde_json::Value = pair.service.call("GET", "/consumers", &[]).await.json().await.unwrap();
    assert_eq!(consumers["items"][0]["unacknowledged"], 0, "{consumers}");
    pair.require_equal("truncated").await;
    let (number, at): (i64, bool) =
        sqlx::query_as("select number, applied_at <= now() from cdc_apply.positions where target = 'public.t'")
            .fetch_one(&pair.target.pool)
            .await
            .unwrap();
    assert_eq!((number, at), (8, true));
    pair.end().await;
}

const TYPES: &str = r#"
    create schema "Od d"; create type "Od d"."Mood" as enum ('sad', 'o''k'); create domain "Od d".pos as int check (value > 0);
    create type "Od d".pair as (a int, b text);
    create table t ("Key A" text, id bigint, primary key (id, "Key A"),
      c1 smallint, c2 integer, c3 real, c4 double precision, c5 numeric, c6 numeric(12, 2), c7 boolean, c8 text, c9 varchar(20), c10 char(3),
      c11 uuid, c12 bytea, c13 json, c14 jsonb, c15 timestamptz, c16 timestamp(3), c17 date, c18 time, c19 timetz, c20 interval,
      c21 int[], c22 text[], c23 numeric(5, 1)[], c24 int4range, c25 tstzrange, c26 inet, c27 cidr, c28 macaddr, c29 macaddr8, c30 bit(3),
      c31 varbit, c32 point, c33 box, c34 path, c35 polygon, c36 circle, c37 lseg, c38 tsvector, c39 tsquery, c40 xml, c41 oid, c42 name,
      c43 pg_lsn, c44 "char", c45 jsonpath, c46 int4multirange, c47 timestamptz[], c48 json[], c49 date[], c50 money,
      "Straße "" x" text, "select" int);
    insert into t ("Key A", id) values ('', 1);
    insert into t select 'k"' || g, g, g, -g, 0.1 * g, 1e300 / g, 'NaN', 12.30, g % 2 = 0, E'a,"\n\\.\t' || g, 'v', 'c', gen_random_uuid(),
      '\x00ff', '{"a": 1, "a":2}', '{"b": null}', '2026-02-26T04:30:00.123456Z', '2026-02-26 04:30:00.1234', '0044-03-15 BC', '24:00:00',
      '04:05:06+05:30', '-1 year 2 days 03:04:05.678', '{1,null,3}', '{"","a,b",null,"\"q\""}', '{1.5}', '[1,5)',
      '["2026-01-01 00:00+00",infinity]', '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', '101', '1', '(1,2)', '((0,0),(1,1))',
      '[(0,0),(1,1)]', '((0,0),(1,1),(2,0))', '<(0,0),1>', '[(0,0),(1,1)]', 'a:1 b:2', 'a & !b', '<a>x</a>', g, 'n', '0/16B3748', 'x',
      '$.a[*]', '{[1,3),[5,7)}', '{"2026-02-26 04:30:00+00",infinity}', array['{"a":1}'::json], '{infinity}', '1.50', '', null
    from generate_series(2, 30) g;
    insert into t ("Key A", id, c15, c17, c4, c5) values ('inf', 7, 'infinity', '-infinity', '-0', 'Infinity')"#;

/// `TYPES` without multiranges and an infinite numeric, which Postgres has since 14.
async fn types() -> String {
    match Database::empty().await.postgres_version().await {
        14.. => TYPES.to_owned(),
        _ => TYPES
            .replace("int4multirange", "int4range")
            .replace("'{[1,3),[5,7)}'", "'[1,3)'")
            .replace("'-0', 'Infinity'", "'-0', 'NaN'"),
    }
}

#[tokio::test]
async fn every_value_arrives_as_it_is() {
    let pair = Pair::of(&types().await).await;
    pair.applied(&[]).await;
    pair.require_equal("the first").await;
    let types =
        "select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attname) from pg_attribute
                 where attrelid = 'public.t'::regclass and attnum > 0";
    assert_eq!(pair.target.one::<String>(types).await, pair.source.one::<String>(types).await);
    let key =
        "select pg_get_constraintdef(oid) from pg_constraint where conrelid = 'public.t'::regclass and contype = 'p'";
    assert_eq!(pair.target.one::<String>(key).await, pair.source.one::<String>(key).await);
    pair.source.run("update t set c2 = c2 + 1, c13 = '[]'; delete from t where id = 7").await;
    pair.applied(&[]).await;
    pair.require_equal("a delta").await;
    export(&pair.service, "full", "t", "a").await;
    pair.applied(&[]).await;
    pair.require_equal("a full one").await;

    // A type that only the source has is text, which is said.
    pair.source.run(r#"alter table t add mood "Od d"."Mood" default 'o''k', add positive "Od d".pos default 3, add two "Od d".pair"#).await;
    pair.source.run("update t set c2 = 0 where id = 3").await;
    let (code, _, said) = pair.apply(&[]).output().await;
    assert!(code == 0 && said.contains("the column mood is text there"), "{said}");
    assert_eq!(pair.target.one::<i64>("select count(*) from t where mood = 'o''k' and positive = '3'").await, 29);
    pair.end().await;
}

#[tokio::test]
async fn no_setting_of_the_target_changes_a_value() {
    let mut pair = Pair::of(&types().await).await;
    pair.source.run("update t set c40 = xmlparse(content 'no document') where id % 2 = 0").await;
    pair.target.set_otherwise().await;
    pair.applied(&[]).await;
    pair.require_equal("the first").await;
    pair.source.run("update t set c2 = c2 + 1; delete from t where id = 7").await;
    pair.applied(&[]).await;
    pair.require_equal("a delta").await;
    export(&pair.service, "full", "t", "a").await;
    pair.applied(&[]).await;
    pair.require_equal("a full one").await;
    pair.end().await;
}

#[tokio::test]
async fn two_at_a_time_apply_each_export_once() {
    let pair = Pair::of(SIMPLE).await;
    pair.applied(&[]).await;
    for round in 0..8 {
        pair.source.run(&format!("update t set name = 'r{round}' where id = 1 + {round}")).await;
        export(&pair.service, "delta", "t", "a").await;
    }
    let calls = futures_util::future::join_all((0..4).map(|_| pair.apply(&["--request", "none"]).output())).await;
    let mut lines = Vec::new();
    for (code, printed, said) in calls {
        assert_eq!(code, 0, "{said}");
        lines.extend(printed.lines().map(|line| line.trim_start_matches("t: ").to_owned()));
    }
    lines.sort();
    let expected: Vec<_> = (2..10).map(|number| format!("delta {number}  1 rows written, 0 deleted")).collect();
    assert_eq!(lines, expected);
    pair.require_equal("all of them").await;
    pair.end().await;
}

/// One that was held up has files which another one has applied meanwhile, and more.
#[tokio::test]
async fn whoever_was_held_up_takes_nothing_back() {
    let pair = Pair::of(SIMPLE).await;
    export(&pair.service, "full", "t", "a").await;
    let slow = pair.apply(&["--request", "none"]).with("FAILPOINTS", "apply.fetched=hold");
    let held = slow.hold("apply.fetched");
    let slow = tokio::spawn(async { slow.output().await });
    held.reached().await;
    for round in 0..3 {
        pair.source
            .run(&format!(
                "update t set name = 'r{round}' where id = 1 + {round}; delete from t where id = 40 + {round}"
            ))
            .await;
        export(&pair.service, "delta", "t", "a").await;
    }
    assert_eq!(pair.applied(&["--request", "none"]).await.len(), 4);
    held.release().await;
    let (code, printed, said) = slow.await.unwrap();
    assert_eq!((code, printed.as_str(), said.as_str()), (0, "", ""));
    pair.require_equal("as it was").await;
    assert_eq!(pair.target.one::<i64>("select number from cdc_apply.positions").await, 4);
    pair.end().await;
}

#[tokio::test]
async fn unique_values_may_change_places() {
    let pair = Pair::of(
        "create table t (id bigint primary key, place int unique, name text); insert into t values (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c')",
    )
    .await;
    pair.applied(&[]).await;
    pair.target.run("alter table t add unique (place)").await;
    for kind in ["delta", "full"] {
        pair.source
            .run(
                "begin; update t set place = -place where place < 4; update t set place = (-place) % 3 + 1 where place < 0;
                 insert into t values (5 + (select count(*) from t), 99 + (select count(*) from t), 'new'); commit",
            )
            .await;
        export(&pair.service, kind, "t", "a").await;
        pair.applied(&["--request", "none"]).await;
        pair.require_equal(kind).await;
    }
    // Rows that others reference are not deleted for a moment.
    pair.target.run("create table r (t bigint references t on delete cascade); insert into r values (1)").await;
    pair.source
        .run("begin; update t set place = -place where place < 4; update t set place = (-place) % 3 + 1 where place < 0; commit")
        .await;
    let said = pair.refused(&[], "unique_values").await;
    assert!(said.contains("deferrable"), "{said}");
    pair.target.run("alter table t drop constraint t_place_key, add constraint later unique (place) deferrable").await;
    pair.applied(&[]).await;
    pair.require_equal("deferrable").await;
    assert_eq!(pair.target.one::<i64>("select count(*) from r").await, 1);
    pair.end().await;
}

#[tokio::test]
async fn the_table_follows_the_sources_columns() {
    let pair = Pair::of(SIMPLE).await;
    pair.applied(&[]).await;
    // What nobody changed has no value in a delta: a full export brings it.
    pair.source.run("alter table t add more int default 7; update t set more = 8 where id = 3").await;
    export(&pair.service, "delta", "t", "a").await;
    let said = pair.refused(&["--request", "none"], "schema_changed").await;
    assert!(said.contains("more"), "{said}");
    let (code, _, said) = pair.apply(&["--schema", "fail"]).output().await;
    assert!(code == 1 && said.contains("let --schema add do so"), "{said}");
    let (code, _, said) = pair.apply(&[]).output().await;
    assert_eq!(code, 0, "{said}");
    pair.require_equal("a new column").await;

    pair.source.run("alter table t alter more type text using 'm' || more").await;
    let (code, _, said) = pair.apply(&[]).output().await;
    assert!(code == 0 && said.contains("asking for a full export"), "{said}");
    pair.require_equal("another type").await;

    // One that goes stays in the copy.
    pair.source.run("alter table t drop more; insert into t values (77, 'z')").await;
    pair.apply(&[]).output().await;
    assert_eq!(pair.target.one::<i64>("select count(*) from t where more is null and id = 77").await, 1);

    pair.target.run("alter table t drop name").await;
    pair.source.run("update t set name = 'q' where id = 1").await;
    let said = pair.healed().await;
    assert!(said.contains("the column name of the table is gone"), "{said}");
    assert_eq!(pair.target.one::<i64>("select count(*) from t where name is null").await, 0);
    pair.target.run("alter table t drop name; alter table t add name text").await;
    pair.source.run("update t set name = 'r' where id = 1").await;
    let said = pair.healed().await;
    assert!(said.contains("added it again"), "{said}");
    assert_eq!(pair.target.one::<i64>("select count(*) from t where name is null").await, 0);
    pair.target.run("drop table t").await;
    pair.refused(&[], "target_changed").await;
    pair.target.run("delete from cdc_apply.positions").await;
    pair.applied(&[]).await;
    let copy = rows(&pair.target, "(select id, name, at from t)").await;
    assert_eq!(copy, rows(&pair.source, "t").await, "made anew");
    pair.end().await;
}

#[tokio::test]
async fn another_key_is_refused_until_the_table_has_it() {
    let pair =
        Pair::of("create table t (id bigint primary key, name text not null); insert into t values (1, 'a')").await;
    pair.target.run("create table t (id bigint, name text)").await;
    pair.refused(&[], "no_key").await;
    pair.target.run("create unique index on t (id) where id > 0").await;
    pair.refused(&[], "no_key").await;
    pair.target.run("create unique index on t (id)").await;
    pair.applied(&["--request", "none"]).await;
    pair.require_equal("an index").await;

    pair.source
        .run("alter table t drop constraint t_pkey, add primary key (name, id); insert into t values (1, 'b')")
        .await;
    pair.catalog.track(&pair.source, "t").await;
    pair.service.stop().await;
    let service = pair.catalog.start(&pair.source).service().await;
    let pair = Pair { service, ..pair };
    let said = pair.refused(&[], "key_changed").await;
    assert!(said.contains("(name, id)"), "{said}");
    pair.target.run("drop index t_id_idx, t_id_idx1; alter table t add primary key (id, name)").await;
    pair.applied(&[]).await;
    pair.require_equal("the new key").await;
    pair.end().await;
}

#[tokio::test]
async fn a_key_that_the_source_has_lost_is_refused_with_the_statements_that_remove_it() {
    let (source, target) = (Database::new().await, Database::empty().await);
    source.run("create table t (a int, b text); insert into t values (1, 'x'), (1, 'x')").await;
    let catalog = Catalog::of(&format!("{DATASET}capture = \"none\"\n"));
    let service = catalog.start(&source).service().await;
    let pair = Pair { source, target, catalog, service };
    let equal = async |context: &str| {
        let list = "(select a, b from t)";
        assert_eq!(rows(&pair.target, list).await, rows(&pair.source, list).await, "{context}");
    };
    pair.applied(&[]).await;
    let (drop_key, drop_not_null) = (
        "alter table \"public\".\"t\" drop constraint t_pkey",
        "alter table \"public\".\"t\" alter column k drop not null",
    );

    // The column of the key is gone.
    pair.source.run("alter table t add column k serial, add primary key (k)").await;
    pair.applied(&[]).await;
    pair.source.run("alter table t drop column k").await;
    for _ in 0..2 {
        let said = pair.refused(&[], "key_changed").await;
        assert!(said.contains(&format!("run `{drop_key}; {drop_not_null}`")), "{said}");
    }
    equal("nothing is changed").await;
    pair.target.run(drop_key).await;
    let said = pair.refused(&[], "key_changed").await;
    assert!(said.contains(&format!("run `{drop_not_null}`")), "{said}");
    pair.target.run(drop_not_null).await;
    pair.applied(&[]).await;
    equal("without the column").await;

    // The column stays, and its values are no longer unique.
    pair.target.run("alter table t drop column k").await;
    pair.source.run("alter table t add column k serial, add primary key (k)").await;
    pair.applied(&[]).await;
    pair.source.run("alter table t drop constraint t_pkey, alter k drop not null; update t set k = null").await;
    let said = pair.refused(&[], "key_changed").await;
    assert!(said.contains("the export has no key and was (k)"), "{said}");
    pair.target.run(&format!("{drop_key}; {drop_not_null}")).await;
    pair.applied(&[]).await;
    equal("with the column").await;

    // Another column is the key now.
    pair.source.run("delete from t; alter table t drop column k; insert into t values (1, 'x'); alter table t add primary key (a)").await;
    let (code, _, said) = pair.apply(&[]).output().await;
    assert_eq!(code, 0, "{said}");
    pair.source.run("alter table t drop column a, add primary key (b)").await;
    let said = pair.refused(&[], "key_changed").await;
    assert!(said.contains("(b) and was (a)") && said.contains("give it a unique index on its new key"), "{said}");
    pair.target
        .run("alter table t drop constraint t_pkey, alter a drop not null; alter table t add primary key (b)")
        .await;
    let (code, _, said) = pair.apply(&[]).output().await;
    assert_eq!(code, 0, "{said}");
    pair.end().await;
}

#[tokio::test]
async fn deleted_rows_may_stay_and_say_so() {
    for (column, live) in [("gone_at", "gone_at is null"), ("is_gone", "not is_gone")] {
        let pair = Pair::of(SIMPLE).await;
        if column == "is_gone" {
            pair.target.run("create table t (id bigint primary key, name text, at timestamptz, is_gone bool not null default false)").await;
        }
        let deletes = ["--deletes", column];
        pair.applied(&deletes).await;
        let equal = async |context: &str| {
            let copy = rows(&pair.target, &format!("(select id, name, at from t where {live})")).await;
            assert_eq!(copy, rows(&pair.source, "t").await, "{column} {context}");
        };
        equal("the first").await;
        pair.source.run("delete from t where id <= 10").await;
        assert_eq!(pair.applied(&deletes).await, ["delta 2  0 rows written, 10 deleted"]);
        equal("deleted").await;
        pair.source
            .run("insert into t select id, 'again' from generate_series(1, 3) id; delete from t where id > 48")
            .await;
        pair.applied(&deletes).await;
        equal("back").await;
        pair.source.run("delete from t where id = 20").await;
        export(&pair.service, "full", "t", "a").await;
        pair.applied(&deletes).await;
        equal("a full one").await;
        assert_eq!(pair.target.one::<i64>("select count(*) from t").await, 50);
        pair.refused(&["--deletes", "name"], "deletes").await;
        pair.end().await;
    }
}

/// A table of the target's own making: with generated and identity columns, and of other types.
#[tokio::test]
async fn a_table_that_is_there_is_taken() {
    let pair = Pair::of(SIMPLE).await;
    pair.target
        .run(
            "create table t (own int default 5, id int generated always as identity primary key, at date,
               name varchar(10), upper text generated always as (upper(name)) stored);
             insert into t (name) values ('theirs'), ('theirs too');
             select setval('t_id_seq', 70); insert into t (name) values ('goes')",
        )
        .await;
    pair.refused(&[], "has_rows").await;
    let (code, _, said) = pair.apply(&["--table", "public.t"]).output().await;
    assert!(code == 0 && said.contains("asking for a full export"), "{said}");
    assert!(said.contains("has rows already"), "{said}");
    export(&pair.service, "full", "t", "a").await;
    pair.applied(&[]).await;
    let copy = rows(&pair.target, "(select id, name, at from t)").await;
    assert_eq!(copy, rows(&pair.source, "(select id, name, at::date from t)").await);
    assert_eq!(pair.target.one::<i64>("select count(*) from t where own = 5 and upper = upper(name)").await, 50);

    // Generated in the source as well: the target's own is left to it.
    pair.source.run("alter table t add upper text generated always as (upper(name)) stored; update t set name = 'up' where id = 1").await;
    pair.apply(&[]).output().await;
    assert_eq!(pair.target.one::<String>("select upper from t where id = 1").await, "UP");
    pair.target.run("create view v as select 1 as id").await;
    pair.refused(&["--table", "public.v"], "target_changed").await;
    pair.applied(&["--table", "mart.\"T\"", "--request", "none"]).await;
    assert_eq!(rows(&pair.target, "mart.\"T\"").await, rows(&pair.source, "t").await);
    pair.refused(&[], "several_tables").await;
    pair.end().await;
}

/// What an adversary has found.
#[tokio::test]
async fn nothing_diverges_in_silence() {
    let pair = Pair::of("create table t (k numeric primary key, name text, place int); insert into t values (1.0, 'a', 1), (2, 'b', 2), (3, 'c', 3)").await;
    // The source itself.
    let to = pair.source.url();
    let fixed = ["apply", "--to", &to, "--consumer", "self", "--dataset", "t", "--server", &pair.service.address];
    let (code, _, said) = far(&fixed).output().await;
    assert!(code == 1 && said.contains("same_table"), "{said}");
    let (code, _, said) = far(&[&fixed[..], &["--table", "copies.t"]].concat()).output().await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(rows(&pair.source, "copies.t").await, rows(&pair.source, "t").await);

    // Equal keys that are written in different ways.
    pair.applied(&[]).await;
    for kind in ["delta", "full"] {
        pair.source.run("update t set k = k::text::numeric * 1.0 where k < 3").await;
        export(&pair.service, kind, "t", "a").await;
        pair.applied(&["--request", "none"]).await;
        pair.require_equal(kind).await;
    }

    // A table that was made anew, and one that a crash empties.
    pair.target.run("drop table t; create table t (k numeric primary key, name text, place int)").await;
    pair.source.run("update t set name = 'x' where k = 1").await;
    let said = pair.healed().await;
    assert!(said.contains("another table"), "{said}");
    pair.require_equal("made anew").await;
    pair.target.run("alter table t set unlogged").await;
    let said = pair.refused(&[], "target_changed").await;
    assert!(said.contains("unlogged"), "{said}");
    pair.target.run("alter table t set logged").await;

    // Values of the table's own, which a row that is written anew would lose.
    pair.applied(&[]).await;
    pair.target.run("alter table t add own text default 'theirs', add unique (place); update t set own = 'mine'").await;
    pair.source.run("begin; update t set place = -place; update t set place = (-place) % 3 + 1; commit").await;
    let said = pair.refused(&[], "unique_values").await;
    assert!(said.contains("columns of its own"), "{said}");
    pair.target.run("alter table t drop constraint t_place_key").await;
    pair.applied(&[]).await;
    assert_eq!(pair.target.one::<i64>("select count(*) from t where own = 'mine'").await, 3);
    pair.refused(&["--deletes", "gone_at"], "deletes").await;

    // Values that have no form in their column's new type.
    pair.target.run("alter table t drop own").await;
    pair.source.run("alter table t drop name; alter table t add name int default 7").await;
    pair.healed().await;
    assert_eq!(pair.target.one::<i64>("select sum(name) from t").await, 21);

    pair.target.run("alter table t alter place set not null, alter place add generated always as identity").await;
    pair.source.run("update t set place = place + 10").await;
    let said = pair.refused(&[], "identity").await;
    assert!(said.contains("set generated by default"), "{said}");
    pair.end().await;
}

/// A row whose parent goes has another one by then.
#[tokio::test]
async fn rows_that_reference_each_other_stay() {
    let table = "create table t (id int primary key, parent int references t on delete cascade)";
    let pair = Pair::of(&format!("{table}; insert into t values (1, null), (2, 1), (3, 2), (4, null)")).await;
    pair.target.run(table).await;
    pair.applied(&[]).await;
    pair.source.run("begin; update t set parent = 4 where id = 2; delete from t where id = 1; commit").await;
    pair.applied(&[]).await;
    pair.require_equal("a new parent").await;
    pair.end().await;
}

/// A mark that nobody set is none, and a domain of the table may refuse a NULL.
#[tokio::test]
async fn marks_and_domains_of_the_tables_own() {
    let pair = Pair::of(SIMPLE).await;
    pair.target
        .run(
            "create domain named as text not null;
             create table t (id bigint primary key, name named, at timestamptz, is_gone boolean)",
        )
        .await;
    let deletes = ["--deletes", "is_gone"];
    pair.applied(&deletes).await;
    pair.source.run("delete from t where id < 10; insert into t values (60, 'new'); delete from t where id = 20").await;
    pair.applied(&deletes).await;
    pair.source.run("delete from t where id = 60").await;
    pair.applied(&deletes).await;
    let copy = rows(&pair.target, "(select id, name, at from t where not is_gone)").await;
    assert_eq!(copy, rows(&pair.source, "t").await);
    assert_eq!(pair.target.one::<i64>("select count(*) from t where is_gone").await, 11);
    pair.end().await;
}

/// Whoever writes the manifests writes no SQL.
#[tokio::test]
async fn a_manifest_is_no_program() {
    let pair = Pair::started(SIMPLE, |start| start.with("MANIFESTS", "on")).await;
    let job = export(&pair.service, "full", "t", "a").await;
    let path = pair.service.path(&job);
    let manifest = path.with_extension("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    for type_name in ["integer --", "integer /*", "integer); drop table t; --", "int\n", "no\u{1b}[2Jsuch"] {
        let mut forged = cdc_export::manifest::Manifest::read(text.as_bytes()).unwrap();
        forged.export.columns[1].type_name = type_name.to_owned();
        forged.export.columns[2].name = "x\n text); create table pwned ();--".to_owned();
        let urls = forged.entries.iter().map(|entry| entry.url.clone()).collect();
        let forged = cdc_export::manifest::Manifest::new(forged.number, forged.export, urls);
        std::fs::write(&manifest, forged.text()).unwrap();
        let (_, printed, said) = from(&pair, pair.service.output(), &[]).output().await;
        assert!(!said.contains('\u{1b}') && !printed.contains('\u{1b}'), "{said:?}");
        let made: bool = pair.target.one("select exists (select from pg_class where relname = 'pwned')").await;
        assert!(!made, "{type_name}");
        pair.target.run("drop table if exists t; drop schema if exists cdc_apply cascade").await;
    }
    pair.end().await;
}

#[tokio::test]
async fn readers_never_see_an_empty_table() {
    let pair = Pair::of(SIMPLE).await;
    pair.applied(&[]).await;
    export(&pair.service, "full", "t", "a").await;
    let call = pair.apply(&["--request", "none"]).with("FAILPOINTS", "apply.applied=hold");
    let held = call.hold("apply.applied");
    let call = tokio::spawn(async { call.output().await });
    held.reached().await;
    assert_eq!(pair.target.one::<i64>("select count(*) from t").await, 50);
    held.release().await;
    assert_eq!(call.await.unwrap().0, 0);
    pair.end().await;
}

#[tokio::test]
async fn a_gap_is_healed_by_a_full_export_or_said() {
    let pair = Pair::of(SIMPLE).await;
    pair.applied(&[]).await;
    pair.source.run("truncate t; insert into t values (1, 'after')").await;
    let (code, _, said) = pair.apply(&[]).output().await;
    assert!(code == 0 && said.contains("asking for a full export"), "{said}");
    pair.require_equal("after a truncate").await;

    // No export has what was deleted since its consumer was removed.
    assert_eq!(pair.service.call("DELETE", "/consumers/a", &[]).await.status(), 204);
    pair.source.run("delete from t; insert into t values (5, 'later')").await;
    pair.healed().await;
    pair.require_equal("after a removal").await;
    let watermark = "/exports/watermark?dataset=t";
    assert_eq!(pair.service.call("DELETE", watermark, &[("X-Consumer-ID", "a")]).await.status(), 204);
    pair.source.run("delete from t; insert into t values (6, 'later')").await;
    let (code, _, said) = pair.apply(&[]).output().await;
    assert_eq!(code, 0, "{said}");
    pair.require_equal("without a watermark").await;

    pair.source.run("insert into t values (2, 'lost')").await;
    let lost = export(&pair.service, "delta", "t", "a").await;
    std::fs::remove_file(pair.service.path(&lost)).unwrap();
    pair.refused(&["--request", "none"], "files of the export").await;
    let (code, _, said) = pair.apply(&[]).output().await;
    assert!(code == 0 && said.contains("asking for a full export"), "{said}");
    pair.require_equal("a file that is gone").await;

    // What it can't read, another export makes good.
    let body = serde_json::json!({ "dataset": "t", "format": "ndjson" });
    crate::catalog::ended(&pair.service, "/exports/delta", Some("a"), body).await;
    pair.source.run("insert into t values (3, 'more')").await;
    let said = pair.refused(&["--request", "none"], "format").await;
    assert!(said.contains("only csv"), "{said}");
    let (code, _, said) = pair.apply(&[]).output().await;
    assert_eq!(code, 0, "{said}");
    pair.require_equal("another format").await;

    // Another database with the same names.
    let other = Pair::of(SIMPLE).await;
    let to = pair.target.url();
    let (code, _, said) =
        far(&["apply", "--to", &to, "--consumer", "a", "--dataset", "t", "--server", &other.service.address])
            .output()
            .await;
    assert!(code == 1 && said.contains("another_source"), "{said}");
    pair.require_equal("as it was").await;
    other.end().await;
    pair.end().await;
}

/// The currency decides how an amount is read: "1,5" is 15 here. A `"char"` would keep only the first byte.
#[tokio::test]
async fn a_text_that_the_target_would_read_otherwise_is_refused() {
    let pair = Pair::of(
        "create table t (id int primary key, amount money, number numeric, price text, letter text, item text);
         insert into t values (1, 234.50, 7.5, '$3.00', 'a', '(1,$3.00)'), (2, null, null, null, null, null),
           (3, -0.07, -0.5, '-$0.20', 'b', '(,)')",
    )
    .await;
    pair.target
        .run(
            "create type item as (id int, price money);
             create table t (id int primary key, amount money, number money, price money, letter \"char\", item item)",
        )
        .await;
    let rows = "select string_agg(concat_ws(' ', id, amount, number, price, letter, item), ';' order by id) from t";
    let into = ["--table", "public.t"];
    pair.apply(&into).output().await;
    assert_eq!(
        pair.target.one::<String>(rows).await,
        "1 $234.50 $7.50 $3.00 a (1,$3.00);2;3 -$0.07 -$0.50 -$0.20 b (,)"
    );
    for (column, value) in [("price", "1,5"), ("number", "0.005"), ("letter", "ab"), ("item", "(1,\"1,5\")")] {
        let before: String = pair.target.one(rows).await;
        pair.source.run(&format!("update t set {column} = '{value}' where id = 2")).await;
        let code = format!("other_values: the target reads another value from a text of the column {column}");
        pair.refused(&into, &code).await;
        assert_eq!(pair.target.one::<String>(rows).await, before);
        pair.target.run(&format!("alter table t alter {column} type text")).await;
        let (exit, _, said) = pair.apply(&into).output().await;
        assert_eq!(exit, 0, "{said}");
        let arrived = format!("select {column} from t where id = 2");
        assert_eq!(pair.target.one::<String>(&arrived).await, value);
    }
    pair.end().await;
}

/// The message of Postgres quotes the value.
#[tokio::test]
async fn a_value_that_the_target_refuses_is_told_by_its_column() {
    let pair = Pair::of("create table t (id int primary key, mood text); insert into t values (1, 'secret')").await;
    pair.target.run("create table t (id int primary key, mood int)").await;
    let said = pair
        .refused(&["--table", "public.t"], "value: the column mood of the target refuses a value of the export")
        .await;
    assert!(said.contains("22P02") && !said.contains("secret"), "{said}");
    pair.end().await;
}

#[tokio::test]
async fn timeouts_of_the_targets_role_end_no_load() {
    let pair = Pair::of("create table t (id int primary key); insert into t select generate_series(1, 200000)").await;
    let name: String = pair.target.one("select current_database()::text").await;
    let timeouts = ["statement_timeout", "idle_in_transaction_session_timeout"];
    for timeout in timeouts {
        pair.target.run(&format!("alter database {name} set {timeout} = '50ms'")).await;
    }
    pair.applied(&[]).await;
    for timeout in timeouts {
        pair.target.run(&format!("alter database {name} reset {timeout}")).await;
    }
    assert_eq!(pair.target.one::<i64>("select count(*) from t").await, 200_000);
    pair.end().await;
}

fn from(pair: &Pair, place: &Path, more: &[&str]) -> Start {
    let (to, place) = (pair.target.url(), place.to_str().unwrap().to_owned());
    far(&[&["apply", "--to", &to, "--consumer", "a", "--dataset", "t", "--from", &place], more].concat())
}

#[tokio::test]
async fn a_folder_is_enough() {
    let pair = Pair::started(SIMPLE, |start| start.with("MANIFESTS", "on")).await;
    let place = pair.service.output().to_owned();
    export(&pair.service, "full", "t", "a").await;
    export(&pair.service, "full", "t", "another").await;
    for round in 0..3 {
        pair.source
            .run(&format!(
                "update t set name = 'r{round}' where id = 1 + {round}; delete from t where id = 40 + {round}"
            ))
            .await;
        let compression = ["none", "gzip", "zstd"][round];
        let body = serde_json::json!({ "dataset": "t", "compression": compression });
        crate::catalog::ended(&pair.service, "/exports/delta", Some("a"), body).await;
    }
    let (code, printed, said) = from(&pair, &place, &[]).output().await;
    assert_eq!((code, printed.lines().count()), (0, 4), "{said}");
    pair.require_equal("all").await;
    let (code, printed, _) = from(&pair, &place, &[]).output().await;
    assert_eq!((code, printed.as_str()), (0, ""));

    // A file that is not as it was exported changes nothing; nor does one that is missing.
    pair.source.run("update t set name = 'changed'").await;
    let job = export(&pair.service, "delta", "t", "a").await;
    let path = pair.service.path(&job);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("changed", "Changed", 1)).unwrap();
    let before = rows(&pair.target, "t").await;
    let (code, _, said) = from(&pair, &place, &[]).output().await;
    assert!(code == 1 && said.contains("SHA-256"), "{said}");
    std::fs::remove_file(&path).unwrap();
    let (code, _, said) = from(&pair, &place, &[]).output().await;
    assert!(code == 1 && said.contains("missing"), "{said}");
    assert_eq!(rows(&pair.target, "t").await, before);
    std::fs::write(&path, text).unwrap();

    // A manifest that is missing is a gap, until a full export comes.
    let next = export(&pair.service, "delta", "t", "a").await;
    export(&pair.service, "delta", "t", "a").await;
    let manifest = path.with_file_name(next["outputFilename"].as_str().unwrap().replace(".csv", ".manifest.json"));
    let text = std::fs::read(&manifest).unwrap();
    std::fs::remove_file(&manifest).unwrap();
    let (code, printed, said) = from(&pair, &place, &[]).output().await;
    assert!((code, printed.lines().count()) == (1, 1) && said.contains("gap"), "{printed} {said}");
    let (code, printed, said) = from(&pair, &place, &[]).output().await;
    assert!((code, printed.lines().count()) == (1, 0) && said.contains("gap"), "{printed} {said}");
    std::fs::write(&manifest, text).unwrap();
    let (code, _, said) = from(&pair, &place, &[]).output().await;
    assert_eq!(code, 0, "{said}");
    pair.require_equal("the gap is closed").await;

    // The digest does not cover the number: a manifest with another one is not gone on with, again and again.
    let full = export(&pair.service, "full", "t", "a").await;
    export(&pair.service, "delta", "t", "a").await;
    let manifest = path.with_file_name(full["outputFilename"].as_str().unwrap().replace(".csv", ".manifest.json"));
    let text = std::fs::read_to_string(&manifest).unwrap();
    let number = full["number"].as_u64().unwrap();
    let other = text.replacen(&format!("\"number\":{number},"), &format!("\"number\":{},", number + 5), 1);
    assert_ne!(other, text);
    std::fs::write(&manifest, other).unwrap();
    let (code, printed, said) = from(&pair, &place, &[]).output().await;
    assert!((code, printed.lines().count()) == (1, 1) && said.contains("changed: "), "{printed} {said}");
    std::fs::write(&manifest, text).unwrap();
    pair.target.run("drop table t; drop schema cdc_apply cascade").await;
    let (code, _, said) = from(&pair, &place, &[]).output().await;
    assert_eq!(code, 0, "{said}");
    pair.require_equal("as it was").await;

    // What `pull` has fetched is such a folder as well.
    export(&pair.service, "full", "t", "a").await;
    let folder = reachable_folder();
    let into = folder.path().to_str().unwrap();
    let pull = ["pull", "--consumer", "a", "--dataset", "t", "--server", &pair.service.address, "--into", into];
    let (code, _, said) = far(&pull).output().await;
    assert_eq!(code, 0, "{said}");
    pair.target.run("drop table t; drop schema cdc_apply cascade").await;
    let (code, _, said) = from(&pair, folder.path(), &[]).output().await;
    assert_eq!(code, 0, "{said}");
    pair.require_equal("from what was pulled").await;
    pair.end().await;
}

/// The target's server goes away in the middle of it.
#[tokio::test]
async fn a_connection_that_breaks_is_made_anew() {
    let pair = Pair::of(SIMPLE).await;
    pair.applied(&[]).await;
    pair.source.run("update t set name = 'x' where id < 10").await;
    for point in ["apply.staged", "apply.applied"] {
        pair.source.run("update t set name = name || 'x' where id < 10").await;
        let call = pair.apply(&[]).with("FAILPOINTS", format!("{point}=hold"));
        let held = call.hold(point);
        let call = tokio::spawn(async { call.output().await });
        let end = "select count(pg_terminate_backend(pid)) from pg_locks where relation = 'cdc_apply.positions'::regclass and mode = 'RowShareLock'";
        held.reached().await;
        assert!(pair.target.one::<i64>(end).await > 0);
        held.release().await;
        let (code, printed, said) = call.await.unwrap();
        assert_eq!((code, printed.lines().count()), (0, 1), "{point}: {said}");
        assert!(said.contains("trying again"), "{said}");
        pair.require_equal(point).await;
    }
    pair.end().await;
}

#[tokio::test]
async fn it_follows_until_it_is_told_to_end() {
    let pair = Pair::of(SIMPLE).await;
    let (mut child, _folder) = pair.apply(&["--every", "100ms"]).spawn();
    for round in 0..4 {
        pair.source
            .run(&format!("update t set name = 'round {round}' where id = 1; delete from t where id = 10 + {round}"))
            .await;
        let wanted = rows(&pair.source, "t").await;
        let is_there = async || {
            let made: bool = pair.target.one("select to_regclass('public.t') is not null").await;
            (made && rows(&pair.target, "t").await == wanted).then_some(())
        };
        eventually("the copy", is_there).await;
    }
    let pid = nix::unistd::Pid::from_raw(child.id().unwrap().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().await.unwrap().success());
    pair.end().await;
}

/// What doesn't pass by itself is not waited for.
#[tokio::test]
async fn a_target_that_is_not_there_is_told_at_once() {
    let pair = Pair::of("create table t (id int primary key)").await;
    let nowhere = pair.target.options.clone().database("nowhere").to_url_lossy().to_string();
    for (to, why) in [
        (nowhere, "does not exist"),
        (pair.target.url_as("nobody_is_called_so", "secret"), "the target database refused the connection"),
    ] {
        let call = ["apply", "--to", &to, "--consumer", "a", "--dataset", "t", "--server", &pair.service.address];
        let (code, printed, said) = far(&call).output().await;
        assert_eq!((code, printed.as_str()), (1, ""), "{said}");
        assert!(said.contains(why) && !said.contains("secret"), "{said}");
        assert!(!said.contains("trying again"), "{said}");
    }
    pair.service.stop().await;
}

/// A table that got its name by `--table` is the one that goes on without it.
#[tokio::test]
async fn a_table_of_another_name_is_known_again() {
    let pair = Pair::of(SIMPLE).await;
    pair.target.run("create schema mart").await;
    pair.applied(&["--table", "mart.\"Copy\""]).await;
    pair.source.run("update t set name = 'x' where id = 3").await;
    assert_eq!(pair.applied(&[]).await.len(), 1);
    assert_eq!(rows(&pair.target, "mart.\"Copy\"").await, rows(&pair.source, "t").await);
    assert_eq!(pair.target.one::<Option<String>>("select to_regclass('public.t')::text").await, None);
    pair.end().await;
}

/// What is in the way of one export is in the way of no newer full one; and a place that has nothing for the table says
/// what it has.
#[tokio::test]
async fn a_folder_goes_on_with_its_newest_full_export() {
    let pair = Pair::started(SIMPLE, |start| start.with("MANIFESTS", "on")).await;
    let place = pair.service.output().to_owned();
    for (dataset, consumer) in [("t", "b"), ("u", "a")] {
        let to = pair.target.url();
        let from = place.to_str().unwrap();
        if consumer == "b" {
            export(&pair.service, "full", "t", "a").await;
        }
        let call = ["apply", "--to", &to, "--consumer", consumer, "--dataset", dataset, "--from", from];
        let (code, printed, said) = far(&call).output().await;
        assert_eq!((code, printed.as_str()), (1, ""), "{said}");
        assert!(said.contains("no_exports: ") && said.contains("t of a"), "{said}");
    }
    let (code, _, said) = from(&pair, &place, &[]).output().await;
    assert_eq!(code, 0, "{said}");
    // One of another format, and one whose file is gone.
    pair.source.run("update t set name = 'x' where id = 3").await;
    crate::catalog::ended(
        &pair.service,
        "/exports/delta",
        Some("a"),
        serde_json::json!({ "dataset": "t", "format": "ndjson" }),
    )
    .await;
    let lost = export(&pair.service, "delta", "t", "a").await;
    let (code, printed, said) = from(&pair, &place, &[]).output().await;
    assert!((code, printed.as_str()) == (1, "") && said.contains("a newer full export goes on"), "{said}");
    std::fs::remove_file(pair.service.path(&lost)).unwrap();
    export(&pair.service, "full", "t", "a").await;
    let (code, printed, said) = from(&pair, &place, &[]).output().await;
    assert_eq!((code, printed.lines().count()), (0, 1), "{said}");
    assert!(said.contains("going on with the full export 4"), "{said}");
    pair.require_equal("by the full export").await;
    pair.end().await;
}

/// The rights that the documentation asks for are enough: a schema of its own, and a table.
#[tokio::test]
async fn a_schema_of_its_own_is_enough() {
    let pair = Pair::of(SIMPLE).await;
    let role = format!("poor_{}", pair.target.options.get_database().unwrap());
    pair.target
        .run(&format!(
            "create role {role} login password 'poor'; create schema cdc_apply authorization {role};
             grant create on schema public to {role}"
        ))
        .await;
    let to = pair.target.url_as(&role, "poor");
    let call = ["apply", "--to", &to, "--consumer", "a", "--dataset", "t", "--server", &pair.service.address];
    let (code, _, said) = far(&call).output().await;
    assert_eq!((code, said.as_str()), (0, ""));
    pair.require_equal("by a role with little").await;
    pair.target
        .run(&format!("drop table t; drop schema cdc_apply cascade; drop owned by {role}; drop role {role}"))
        .await;
    pair.end().await;
}

#[tokio::test]
async fn a_key_of_a_domain_is_compared_by_the_type_beneath_it() {
    const DOMAINS: &str = "create domain phone as varchar(25); create domain code as phone;
                           create type mood as enum ('a', 'b'); create domain feeling as mood";
    let table = "create table t (ph phone, c code, m feeling, v int, primary key (ph, c, m))";
    let pair = Pair::of(&format!("{DOMAINS}; {table}; insert into t values ('1', '2', 'a', 1)")).await;
    // The source's own types, those beneath them, and no such types at all.
    let beneath = "create table t (ph varchar(25), c varchar(30), m text, v int, primary key (ph, c, m))";
    for target in [&format!("{DOMAINS}; {table}"), beneath, DOMAINS, "select"] {
        pair.target.run(target).await;
        let (code, _, said) = pair.apply(&[]).output().await;
        assert!(code == 0 && (target == "select" || said.is_empty()), "{target}: {said}");
        pair.require_equal(target).await;
        pair.target.run("drop table t; drop domain if exists code, phone, feeling; drop type if exists mood; drop schema cdc_apply cascade").await;
    }
    // Domains of the same names, which are coarser.
    for coarser in ["varchar(5)", "char(25)"] {
        pair.target
            .run(&format!("create domain phone as {coarser}; create table t (ph phone, c text, m text, v int, primary key (ph, c, m))"))
            .await;
        let said = pair.refused(&[], "key_coarser").await;
        assert!(said.contains("ph is phone (a domain over character varying(25)) in the source"), "{said}");
        assert!(said.contains("make it character varying(25)"), "{said}");
        pair.target.run("drop table t; drop domain phone").await;
    }
    pair.end().await;
}

#[tokio::test]
async fn a_key_that_takes_two_of_the_sources_for_one_is_refused() {
    let pair =
        Pair::of("create table t (id text primary key, v int); insert into t values ('a', 1), ('A', 2), ('a ', 3)")
            .await;
    pair.target
        .run(
            "create collation folds (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             create type letter as enum ('a', 'A', 'a '); create domain named as text",
        )
        .await;
    let has_citext = "select exists (select from pg_available_extensions where name = 'citext')";
    let mut coarser = vec![
        "id text collate folds primary key",
        "id text primary key, constraint folded unique (id)); alter table t drop constraint folded; create unique index on t (id collate folds",
        "id varchar(5) primary key",
        "id char(5) primary key",
    ];
    if pair.target.one::<bool>(has_citext).await {
        pair.target.run("create extension citext").await;
        coarser.push("id citext primary key");
    }
    for columns in coarser {
        pair.target.run(&format!("create table t (v int, {columns})")).await;
        let said = pair.refused(&[], "key_coarser").await;
        assert!(said.contains("the key's column id is text in the source"), "{said}");
        pair.target.run("drop table t").await;
    }
    for columns in ["id text", "id varchar", "id named", "id letter"] {
        pair.target.run(&format!("create table t ({columns} primary key, v int)")).await;
        pair.applied(&[]).await;
        assert_eq!(rows(&pair.target, "public.t").await.len(), 3, "{columns}");
        pair.target.run("drop table t; drop schema cdc_apply cascade").await;
    }
    pair.end().await;
}
