//! `apply`: a table of another Postgres equals the source after each export, each applied once, whatever is killed and
//! whoever else applies.

mod forks;
pub(crate) mod pair;
mod together;
mod trust;

use cdc_manifest::Manifest;
use sqlx::ConnectOptions;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::apply::pair::{Pair, rows};
use crate::catalog::export;
use crate::harness::{Database, HANG_TIMEOUT, ends, eventually, far, reachable_folder, silent, stop};
use crate::network::{self, Proxy};
use crate::pull::forget_after;

const SIMPLE: &str = "create table t (id bigint primary key, name text, at timestamptz default now());
                      insert into t select g, 'n' || g from generate_series(1, 50) g";

#[tokio::test]
async fn the_copy_equals_the_source_after_each_export() {
    let pair = Pair::of(SIMPLE).await;
    assert_eq!(pair.applied(&[]).await, ["delta 1  50 rows written, 0 deleted"]);
    pair.require_equal("the first").await;
    let statements = "update t set name = 'x' where id < 4; delete from t where id > 40; insert into t values (100, null), (101, '')";
    pair.source.run(statements).await;
    assert_eq!(pair.applied(&[]).await, ["delta 2  5 rows written, 10 deleted"]);
    pair.require_equal("a delta").await;
    assert_eq!(pair.applied(&["--request", "none"]).await, Vec::<String>::new());

    // Applies exports of all types that others requested, in order. A full export replaces all rows.
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
            "full 4  42 rows written, 42 deleted",
            "delta 5  0 rows written, 0 deleted",
            "delta 6  1 rows written, 1 deleted"
        ]
    );
    pair.require_equal("several").await;

    // A full export makes good what somebody did to the copy. What is applied may be acknowledged.
    pair.target.run("delete from t where id < 10; update t set name = 'mine'; insert into t values (-1)").await;
    export(&pair.service, "full", "t", "a").await;
    // The delta that it asks for finds nothing, so it makes no file.
    let lines = pair.applied(&["--ack"]).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    let consumers: serde_json::Value = pair.service.call("GET", "/consumers", &[]).await.json().await.unwrap();
    assert_eq!(consumers["items"][0]["unacknowledged"], 0, "{consumers}");
    pair.require_equal("replaced").await;
    let (number, at): (i64, bool) =
        sqlx::query_as("select number, applied_at <= now() from cdc_apply.positions where target = 'public.t'")
            .fetch_one(&pair.target.pool)
            .await
            .unwrap();
    assert_eq!((number, at), (7, true));
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

/// Applies an export of each kind. The columns of `money` and `"char"` become texts, which is said.
async fn take_all_values(pair: &Pair) {
    let (code, printed, said) = pair.apply(&[]).output().await;
    assert_eq!((code, said.lines().count()), (0, 2), "{printed} {said}");
    assert!(said.contains("the column c44 is text there") && said.contains("the column c50 is text there"), "{said}");
    pair.require_equal("the first").await;
    pair.source.run("update t set c2 = c2 + 1, c13 = '[]'; delete from t where id = 7").await;
    pair.applied(&[]).await;
    pair.require_equal("a delta").await;
    export(&pair.service, "full", "t", "a").await;
    pair.applied(&[]).await;
    pair.require_equal("a full one").await;
}

#[tokio::test]
async fn every_value_arrives_as_it_is() {
    let pair = Pair::of(&types().await).await;
    take_all_values(&pair).await;
    let types =
        "select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attname) from pg_attribute
                 where attrelid = 'public.t'::regclass and attnum > 0 and attname not in ('c44', 'c50')";
    assert_eq!(pair.target.one::<String>(types).await, pair.source.one::<String>(types).await);
    let key =
        "select pg_get_constraintdef(oid) from pg_constraint where conrelid = 'public.t'::regclass and contype = 'p'";
    assert_eq!(pair.target.one::<String>(key).await, pair.source.one::<String>(key).await);

    // A type that isn't Postgres's own is text, which is said. A domain is the type beneath it.
    pair.source.run(r#"alter table t add mood "Od d"."Mood" default 'o''k', add positive "Od d".pos default 3, add two "Od d".pair"#).await;
    pair.source.run("update t set c2 = 0 where id = 3").await;
    ends(pair.apply(&[]).output().await, 0, "the column mood is text there");
    assert_eq!(pair.target.one::<i64>("select count(*) from t where mood = 'o''k' and positive = 3").await, 29);
    // It stays as it is when the source's becomes a text as well, so a view may use it.
    pair.target.run("create view moods as select mood from t").await;
    pair.source.run("alter table t alter mood drop default, alter mood type text using mood::text").await;
    ends(pair.apply(&[]).output().await, 0, "");
}

#[tokio::test]
async fn no_setting_of_the_target_changes_a_value() {
    let mut pair = Pair::of(&types().await).await;
    pair.source.run("update t set c40 = xmlparse(content 'no document') where id % 2 = 0").await;
    pair.target.set_otherwise().await;
    take_all_values(&pair).await;
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
}

/// One that was held up has files which another one has applied meanwhile, and more.
#[tokio::test]
async fn whoever_was_held_up_takes_nothing_back() {
    let pair = Pair::of(SIMPLE).await;
    export(&pair.service, "full", "t", "a").await;
    let (held, slow) = pair.held_at("apply.fetched", &["--request", "none"]).await;
    for round in 0..3 {
        let statements =
            format!("update t set name = 'r{round}' where id = 1 + {round}; delete from t where id = 40 + {round}");
        pair.source.run(&statements).await;
        export(&pair.service, "delta", "t", "a").await;
    }
    assert_eq!(pair.applied(&["--request", "none"]).await.len(), 4);
    held.release().await;
    assert_eq!(silent(slow.await.unwrap()), "");
    pair.require_equal("as it was").await;
    assert_eq!(pair.target.one::<i64>("select number from cdc_apply.positions").await, 4);
}

/// An index, a view and a grant of the table's owner stay.
#[tokio::test]
async fn what_a_user_adds_stays_through_full_exports() {
    let pair = Pair::of(SIMPLE).await;
    pair.applied(&[]).await;
    let role = pair.target.role().await;
    let statements = format!(
        "create index on t (lower(name)); create view names as select name from t;
         grant select on t to {role}"
    );
    pair.target.run(&statements).await;
    let added = format!(
        "select (select count(*) from pg_index where indrelid = 't'::regclass) || ' '
           || has_table_privilege('{role}', 't', 'select') || ' ' || (select count(*) from names)"
    );
    pair.source.run("delete from t where id > 30; update t set name = 'x'; alter table t add more int default 7").await;
    for kind in ["full", "delta", "full"] {
        export(&pair.service, kind, "t", "a").await;
        pair.source.run("update t set name = name || '.' where id < 5").await;
    }
    pair.applied(&[]).await;
    pair.require_equal("with a new column").await;
    assert_eq!(pair.target.one::<String>(&added).await, "2 true 30");
}

#[tokio::test]
async fn unique_values_may_change_places() {
    let pair = Pair::of(
        "create table t (id bigint primary key, place int unique, name text); insert into t values (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c')",
    )
    .await;
    pair.applied(&[]).await;
    pair.target.run("create unique index places on t (place)").await;
    let swap =
        "begin; update t set place = -place where place < 4; update t set place = (-place) % 3 + 1 where place < 0;
                insert into t values (5 + (select count(*) from t), 99 + (select count(*) from t), 'new'); commit";
    for kind in ["delta", "incremental"] {
        pair.source.run(swap).await;
        export(&pair.service, kind, "t", "a").await;
        pair.healed("unique values have moved between rows of public.t").await;
        pair.require_equal(kind).await;
    }
    pair.source.run(swap).await;
    export(&pair.service, "full", "t", "a").await;
    pair.applied(&[]).await;
    pair.require_equal("full").await;
    // A constraint that is checked behind each statement needs no full export.
    pair.target.run("drop index places; alter table t add constraint later unique (place) deferrable").await;
    pair.source.run(swap).await;
    assert_eq!(pair.applied(&[]).await.len(), 1);
    pair.require_equal("deferrable").await;
}

#[tokio::test]
async fn the_table_follows_the_sources_columns() {
    let pair = Pair::of(SIMPLE).await;
    pair.applied(&[]).await;
    // A delta has no values of a new column in unchanged rows: a full export brings them.
    pair.source.run("alter table t add more int default 7; update t set more = 8 where id = 3").await;
    export(&pair.service, "delta", "t", "a").await;
    let said = pair.refused(&["--request", "none"], "full_export_needed").await;
    assert!(said.contains("the column more is new"), "{said}");
    ends(pair.apply(&[]).output().await, 0, "");
    pair.require_equal("a new column").await;

    pair.source.run("alter table t alter more type text using 'm' || more").await;
    ends(pair.apply(&[]).output().await, 0, "asking for a full export");
    pair.require_equal("another type").await;

    // One that goes stays in the copy.
    pair.source.run("alter table t drop more; insert into t values (77, 'z')").await;
    pair.apply(&[]).output().await;
    assert_eq!(pair.target.one::<i64>("select count(*) from t where more is null and id = 77").await, 1);

    pair.target.run("alter table t drop name").await;
    pair.source.run("update t set name = 'q' where id = 1").await;
    pair.healed("the column name of the table is gone").await;
    assert_eq!(pair.target.one::<i64>("select count(*) from t where name is null").await, 0);
    pair.target.run("alter table t drop name; alter table t add name text").await;
    pair.source.run("update t set name = 'r' where id = 1").await;
    pair.healed("added it again").await;
    assert_eq!(pair.target.one::<i64>("select count(*) from t where name is null").await, 0);
    // A column whose type or collation somebody has changed gets them back.
    for change in ["varchar(100)", "text collate \"C\""] {
        pair.target.run(&format!("alter table t alter name type {change}")).await;
        pair.source.run("update t set name = 's' where id = 1").await;
        pair.healed("somebody has changed the column name").await;
        let type_name = "select format_type(atttypid, atttypmod) || attcollation from pg_attribute where attrelid = 't'::regclass and attname = 'name'";
        assert_eq!(pair.target.one::<String>(type_name).await, "text100");
        assert_eq!(rows(&pair.target, "(select id, name, at from t)").await, rows(&pair.source, "t").await, "{change}");
    }
    pair.target.run("drop table t").await;
    // Also if there is nothing to apply.
    for more in [&["--request", "none"][..], &[]] {
        pair.refused(more, "target_changed").await;
    }
    pair.target.run("delete from cdc_apply.positions").await;
    pair.applied(&[]).await;
    assert_eq!(rows(&pair.target, "(select id, name, at from t)").await, rows(&pair.source, "t").await, "made anew");
}

const KEY: &str = "select coalesce((select pg_get_constraintdef(oid) from pg_constraint
                   where conrelid = 'public.t'::regclass and contype = 'p'), 'none')";

#[tokio::test]
async fn the_table_gets_another_key_of_the_source() {
    let pair =
        Pair::of("create table t (id bigint primary key, name text not null); insert into t values (1, 'a')").await;
    pair.applied(&[]).await;
    let statements = "alter table t drop constraint t_pkey, add primary key (name, id); insert into t values (1, 'b')";
    pair.source.run(statements).await;
    pair.catalog.track(&pair.source, "t").await;
    pair.service.stop().await;
    let service = pair.catalog.start(&pair.source).service().await;
    let pair = Pair { service, ..pair };
    pair.healed("").await;
    pair.require_equal("the new key").await;
    assert_eq!(pair.target.one::<String>(KEY).await, "PRIMARY KEY (name, id)");
    // A key that somebody has removed comes back.
    pair.target.run("alter table t drop constraint t_pkey").await;
    pair.source.run("insert into t values (2, 'b')").await;
    pair.healed("the primary key of \"public\".\"t\" is ()").await;
    pair.require_equal("the key is back").await;
    assert_eq!(pair.target.one::<String>(KEY).await, "PRIMARY KEY (name, id)");
}

#[tokio::test]
async fn a_key_that_the_source_loses_and_gains_is_followed() {
    let table = "create table t (a int, b text); insert into t values (1, 'x'), (1, 'x')";
    let pair = Pair::with_options(table, "capture = \"none\"\n", |start| start).await;
    for (change, list, key) in [
        ("select", "a, b", "none"),
        ("alter table t add column k serial, add primary key (k)", "a, b, k", "PRIMARY KEY (k)"),
        ("alter table t drop column k", "a, b", "none"),
        ("alter table t add column k serial, add primary key (k)", "a, b, k", "PRIMARY KEY (k)"),
        // The column stays, and its values are no longer unique.
        ("alter table t drop constraint t_pkey, alter k drop not null; update t set k = null", "a, b, k", "none"),
        (
            "delete from t; insert into t values (1, 'x'); alter table t add primary key (a)",
            "a, b, k",
            "PRIMARY KEY (a)",
        ),
        ("alter table t drop column a, add primary key (b)", "b, k", "PRIMARY KEY (b)"),
    ] {
        pair.source.run(change).await;
        let (code, printed, said) = pair.apply(&[]).output().await;
        assert_eq!((code, printed.lines().count()), (0, 1), "{change}: {said}");
        let list = format!("(select {list} from t)");
        assert_eq!(rows(&pair.target, &list).await, rows(&pair.source, &list).await, "{change}");
        assert_eq!(pair.target.one::<String>(KEY).await, key, "{change}");
    }
    // A key that somebody adds to a table without one stays.
    pair.source.run("alter table t drop constraint t_pkey").await;
    pair.applied(&[]).await;
    pair.target.run("alter table t add id bigint generated always as identity primary key").await;
    pair.applied(&[]).await;
    assert_eq!(rows(&pair.target, "(select b, k from t)").await, rows(&pair.source, "(select b, k from t)").await);
    assert_eq!(pair.target.one::<String>(KEY).await, "PRIMARY KEY (id)");
}

/// A table that somebody derives from the copy, after its check and before its rows are deleted.
#[tokio::test]
async fn no_row_of_a_users_table_is_deleted() {
    let pair = Pair::of(SIMPLE).await;
    pair.applied(&[]).await;
    pair.source.run("delete from t where id = 2").await;
    let (held, apply) = pair.held_at("apply.staged", &[]).await;
    pair.target.run("create table mine (note text) inherits (t); insert into mine values (2, 'precious')").await;
    held.release().await;
    assert_eq!(apply.await.unwrap().1, "t: delta 2  0 rows written, 1 deleted\n");
    assert_eq!(pair.target.one::<i64>("select count(*) from mine").await, 1);
}

#[tokio::test]
async fn a_watermark_that_was_set_forward_asks_for_a_full_export() {
    let pair = Pair::with_options(SIMPLE, "updated_at = \"at\"\n", |start| start).await;
    pair.applied(&[]).await;
    let late = "update t set name = 'late', at = now() - interval '1 day' where id = 7;
                update watermarks set last_exported_at = now()";
    pair.source.run(late).await;
    pair.healed("somebody set the watermark").await;
    pair.require_equal("healed").await;
}

#[tokio::test]
async fn a_newer_full_export_goes_past_a_row_that_the_target_refuses() {
    let pair = Pair::of(SIMPLE).await;
    pair.applied(&[]).await;
    pair.target.run("alter table t add check (name <> 'bad')").await;
    pair.source.run("update t set name = 'bad' where id = 1").await;
    pair.refused(&[], "violates check constraint").await;
    pair.source.run("update t set name = 'good' where id = 1").await;
    pair.refused(&["--request", "none"], "violates check constraint").await;
    export(&pair.service, "full", "t", "a").await;
    ends(pair.apply(&["--request", "none"]).output().await, 0, "going on from the full export");
    pair.require_equal("the full export").await;
}

#[tokio::test]
async fn a_table_that_apply_has_not_made_is_refused() {
    let pair = Pair::of(SIMPLE).await;
    let table = "create table t (id bigint primary key, name text, at timestamptz)";
    for taken in [table, &format!("{table}; insert into t values (-1, 'mine')"), "create view t as select -1 as id"] {
        pair.target.run(taken).await;
        let before = rows(&pair.target, "t").await;
        for more in [&[][..], &["--table", "public.t"]] {
            let said = pair.refused(more, "table_taken: public.t is there, and apply has not made it").await;
            assert!(!said.contains("update cdc_apply.positions"), "{said}");
        }
        assert_eq!(rows(&pair.target, "t").await, before);
        let drop = if taken.contains("view") { "drop view t" } else { "drop table t" };
        pair.target.run(drop).await;
    }
    pair.applied(&[]).await;
    pair.applied(&["--table", "mart.\"T\"", "--request", "none"]).await;
    assert_eq!(rows(&pair.target, "mart.\"T\"").await, rows(&pair.source, "t").await);
    pair.refused(&[], "table_name: several tables have these exports").await;
}

/// A restore from a dump makes all tables anew. The operator says that the table is the one that was dumped.
#[tokio::test]
async fn a_table_that_was_made_anew_is_refused_until_it_is_named_as_the_former_one() {
    for table in ["public.t", "mart.\"It's one.\""] {
        let pair = Pair::of(SIMPLE).await;
        pair.applied(&["--table", table]).await;
        let statements = format!(
            "alter table {table} rename to former; create table {table} (like {0} including all); insert into {table} table {0}",
            table.split('.').next().unwrap().to_owned() + ".former"
        );
        pair.target.run(&statements).await;
        pair.source.run("update t set name = 'x' where id = 1").await;
        let said = pair.refused(&[], "table_taken").await;
        pair.target.run(said.trim().split_once("say that it is the one: ").unwrap().1).await;
        // The table is found without `--table`.
        assert_eq!(pair.applied(&[]).await, ["delta 2  1 rows written, 0 deleted"]);
        assert_eq!(rows(&pair.target, table).await, rows(&pair.source, "t").await, "{table}");
        assert_eq!(pair.target.one::<bool>("select to_regclass('public.t') is not null").await, table == "public.t");
    }
}

#[tokio::test]
async fn nothing_diverges_in_silence() {
    let pair = Pair::of("create table t (k numeric primary key, name text, place int); insert into t values (1.0, 'a', 1), (2, 'b', 2), (3, 'c', 3)").await;
    // The source itself.
    let to = pair.source.url();
    let fixed = ["apply", "--to", &to, "--consumer", "self", "--dataset", "t", "--server", &pair.service.address];
    ends(far(&fixed).output().await, 1, "table_taken");
    ends(far(&[&fixed[..], &["--table", "copies.t"]].concat()).output().await, 0, "");
    assert_eq!(rows(&pair.source, "copies.t").await, rows(&pair.source, "t").await);

    // Equal keys that are written in different ways.
    pair.applied(&[]).await;
    for kind in ["delta", "full"] {
        pair.source.run("update t set k = k::text::numeric * 1.0 where k < 3").await;
        export(&pair.service, kind, "t", "a").await;
        pair.applied(&["--request", "none"]).await;
        pair.require_equal(kind).await;
    }

    // A table that a crash empties.
    pair.target.run("alter table t set unlogged").await;
    let said = pair.refused(&[], "target_changed").await;
    assert!(said.contains("unlogged"), "{said}");
    pair.target.run("alter table t set logged").await;
    pair.applied(&[]).await;

    // Values that have no form in their column's new type.
    pair.source.run("alter table t drop name; alter table t add name int default 7").await;
    pair.healed("").await;
    assert_eq!(pair.target.one::<i64>("select sum(name) from t").await, 21);
}

/// A manifest can't make `apply` run SQL.
#[tokio::test]
async fn a_manifest_is_no_program() {
    let pair = Pair::started(SIMPLE, |start| start.with("MANIFESTS", "on")).await;
    let path = pair.service.path(&export(&pair.service, "full", "t", "a").await);
    let manifest = path.with_extension("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    for type_name in ["integer --", "integer /*", "integer); drop table t; --", "int\n", "no\u{1b}[2Jsuch"] {
        let mut forged = Manifest::read(text.as_bytes()).unwrap();
        forged.export.columns[1].type_name = type_name.to_owned();
        forged.export.columns[2].name = "x\n text); create table pwned ();--".to_owned();
        let urls = forged.entries.iter().map(|entry| entry.url.clone()).collect();
        std::fs::write(&manifest, Manifest::new(forged.number, forged.export, urls).text()).unwrap();
        let (_, printed, said) = pair.apply_from(&[]).output().await;
        assert!(!said.contains('\u{1b}') && !printed.contains('\u{1b}'), "{said:?}");
        let made: bool = pair.target.one("select exists (select from pg_class where relname = 'pwned')").await;
        assert!(!made, "{type_name}");
        pair.target.run("drop table if exists t; drop schema if exists cdc_apply cascade").await;
    }
}

#[tokio::test]
async fn readers_never_see_an_empty_table() {
    let pair = Pair::of(SIMPLE).await;
    pair.applied(&[]).await;
    export(&pair.service, "full", "t", "a").await;
    let (held, call) = pair.held_at("apply.applied", &["--request", "none"]).await;
    assert_eq!(pair.target.one::<i64>("select count(*) from t").await, 50);
    // A reader that began before the commit doesn't see an empty table either.
    let mut reader = pair.target.open("set transaction isolation level repeatable read; select from pg_class").await;
    held.release().await;
    assert_eq!(call.await.unwrap().0, 0);
    let seen: i64 = sqlx::query_scalar("select count(*) from t").fetch_one(&mut *reader).await.unwrap();
    assert_eq!(seen, 50);
    drop(reader);
}

#[tokio::test]
async fn a_gap_is_healed_by_a_full_export_or_said() {
    let pair = Pair::of(SIMPLE).await;
    pair.applied(&[]).await;
    pair.source.run("truncate t; insert into t values (1, 'after')").await;
    ends(pair.apply(&[]).output().await, 0, "asking for a full export");
    pair.require_equal("after a truncate").await;

    // No export has what was deleted since its consumer was removed.
    assert_eq!(pair.service.call("DELETE", "/consumers/a", &[]).await.status(), 204);
    pair.source.run("delete from t; insert into t values (5, 'later')").await;
    pair.healed("").await;
    pair.require_equal("after a removal").await;
    let watermark = "/exports/watermark?dataset=t";
    assert_eq!(pair.service.call("DELETE", watermark, &[("X-Consumer-ID", "a")]).await.status(), 204);
    pair.source.run("delete from t; insert into t values (6, 'later')").await;
    ends(pair.apply(&[]).output().await, 0, "");
    pair.require_equal("without a watermark").await;

    pair.source.run("insert into t values (2, 'lost')").await;
    std::fs::remove_file(pair.service.path(&export(&pair.service, "delta", "t", "a").await)).unwrap();
    pair.refused(&["--request", "none"], "files of the export").await;
    ends(pair.apply(&[]).output().await, 0, "asking for a full export");
    pair.require_equal("a file that is gone").await;

    // Another export replaces one that `apply` can't read.
    let body = serde_json::json!({ "dataset": "t", "format": "ndjson" });
    crate::catalog::ended(&pair.service, "/exports/delta", Some("a"), body).await;
    pair.source.run("insert into t values (3, 'more')").await;
    let said = pair.refused(&["--request", "none"], "full_export_needed").await;
    assert!(said.contains("only csv"), "{said}");
    ends(pair.apply(&[]).output().await, 0, "");
    pair.require_equal("another format").await;

    // Another database with the same names.
    let other = Pair::of(SIMPLE).await;
    ends(other.apply_to(&pair.target.url(), &["--server", &other.service.address]).output().await, 1, "another_source");
    pair.require_equal("as it was").await;
}

/// The message of Postgres quotes the value.
#[tokio::test]
async fn a_value_that_the_target_refuses_is_not_quoted() {
    let pair =
        Pair::started("create table t (id int primary key, mood text); insert into t values (1, 'secret')", |start| {
            start.with("MANIFESTS", "on")
        })
        .await;
    let manifest = pair.service.path(&export(&pair.service, "full", "t", "a").await).with_extension("manifest.json");
    let mut forged = Manifest::read(&std::fs::read(&manifest).unwrap()).unwrap();
    forged.export.columns[1].type_name = "integer".to_owned();
    let urls = forged.entries.iter().map(|entry| entry.url.clone()).collect();
    std::fs::write(&manifest, Manifest::new(forged.number, forged.export, urls).text()).unwrap();
    let (code, _, said) = pair.apply_from(&[]).output().await;
    assert!(code == 1 && said.contains("22P02") && !said.contains("secret"), "{said}");
}

#[tokio::test]
async fn timeouts_of_the_targets_role_end_no_load() {
    let pair = Pair::of("create table t (id int primary key); insert into t select generate_series(1, 200000)").await;
    let name: String = pair.target.one("select current_database()::text").await;
    let timeouts = ["statement_timeout", "idle_in_transaction_session_timeout"];
    // In one session, so that no later one of this test has the timeouts.
    pair.target.run(&timeouts.map(|it| format!("alter database {name} set {it} = '50ms'")).join(";")).await;
    pair.applied(&[]).await;
    pair.target.run(&timeouts.map(|it| format!("alter database {name} reset {it}")).join(";")).await;
    assert_eq!(pair.target.one::<i64>("select count(*) from t").await, 200_000);
}

#[tokio::test]
async fn a_folder_is_enough() {
    let pair = Pair::started(SIMPLE, |start| start.with("MANIFESTS", "on")).await;
    export(&pair.service, "full", "t", "a").await;
    export(&pair.service, "full", "t", "another").await;
    for round in 0..3 {
        let statements =
            format!("update t set name = 'r{round}' where id = 1 + {round}; delete from t where id = 40 + {round}");
        pair.source.run(&statements).await;
        let compression = ["none", "gzip", "zstd"][round];
        let body = serde_json::json!({ "dataset": "t", "compression": compression });
        crate::catalog::ended(&pair.service, "/exports/delta", Some("a"), body).await;
    }
    let (code, printed, said) = pair.apply_from(&[]).output().await;
    assert_eq!((code, printed.lines().count()), (0, 4), "{said}");
    pair.require_equal("all").await;
    assert_eq!(ends(pair.apply_from(&[]).output().await, 0, "").0, "");

    // A file that is not as it was exported changes nothing; nor does one that is missing.
    pair.source.run("update t set name = 'changed'").await;
    let path = pair.service.path(&export(&pair.service, "delta", "t", "a").await);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("changed", "Changed", 1)).unwrap();
    let before = rows(&pair.target, "t").await;
    ends(pair.apply_from(&[]).output().await, 1, "SHA-256");
    std::fs::remove_file(&path).unwrap();
    ends(pair.apply_from(&[]).output().await, 1, "missing");
    assert_eq!(rows(&pair.target, "t").await, before);
    std::fs::write(&path, text).unwrap();

    // A manifest that is missing is a gap, until a full export comes.
    let next = export(&pair.service, "delta", "t", "a").await;
    export(&pair.service, "delta", "t", "a").await;
    let manifest = path.with_file_name(next["outputFilename"].as_str().unwrap().replace(".csv", ".manifest.json"));
    let text = std::fs::read(&manifest).unwrap();
    std::fs::remove_file(&manifest).unwrap();
    let (code, printed, said) = pair.apply_from(&[]).output().await;
    assert!((code, printed.lines().count()) == (1, 1) && said.contains("full_export_needed"), "{printed} {said}");
    let (code, printed, said) = pair.apply_from(&[]).output().await;
    assert!((code, printed.lines().count()) == (1, 0) && said.contains("full_export_needed"), "{printed} {said}");
    std::fs::write(&manifest, text).unwrap();
    ends(pair.apply_from(&[]).output().await, 0, "");
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
    let (code, printed, said) = pair.apply_from(&[]).output().await;
    assert!((code, printed.lines().count()) == (1, 1) && said.contains("changed: "), "{printed} {said}");
    std::fs::write(&manifest, text).unwrap();
    pair.target.run("drop table t; drop schema cdc_apply cascade").await;
    ends(pair.apply_from(&[]).output().await, 0, "");
    pair.require_equal("as it was").await;

    // A folder that `pull` has filled is such a folder as well.
    export(&pair.service, "full", "t", "a").await;
    let folder = reachable_folder();
    let into = folder.path().to_str().unwrap();
    let pull = ["pull", "--consumer", "a", "--dataset", "t", "--server", &pair.service.address, "--into", into];
    ends(far(&pull).output().await, 0, "");
    pair.target.run("drop table t; drop schema cdc_apply cascade").await;
    ends(pair.apply_to(&pair.target.url(), &["--from", into]).output().await, 0, "");
    pair.require_equal("from what was pulled").await;
}

/// The target's server goes away in the middle of it.
#[tokio::test]
async fn a_connection_that_breaks_is_made_anew() {
    let pair = Pair::of(SIMPLE).await;
    pair.applied(&[]).await;
    pair.source.run("update t set name = 'x' where id < 10").await;
    for point in ["apply.staged", "apply.applied"] {
        pair.source.run("update t set name = name || 'x' where id < 10").await;
        let (held, call) = pair.held_at(point, &[]).await;
        let end = "select count(pg_terminate_backend(pid)) from pg_locks where relation = 'cdc_apply.positions'::regclass and mode = 'RowShareLock'";
        assert!(pair.target.one::<i64>(end).await > 0);
        held.release().await;
        let (code, printed, said) = call.await.unwrap();
        assert_eq!((code, printed.lines().count()), (0, 1), "{point}: {said}");
        assert!(said.contains("trying again"), "{said}");
        pair.require_equal(point).await;
    }
}

#[tokio::test]
async fn it_follows_until_it_is_told_to_end() {
    let pair = Pair::of(SIMPLE).await;
    let (mut child, _folder) = pair.apply(&["--every", "100ms"]).spawn();
    for round in 0..4 {
        let statements =
            format!("update t set name = 'round {round}' where id = 1; delete from t where id = 10 + {round}");
        pair.source.run(&statements).await;
        let wanted = rows(&pair.source, "t").await;
        let is_there = async || {
            let made: bool = pair.target.one("select to_regclass('public.t') is not null").await;
            (made && rows(&pair.target, "t").await == wanted).then_some(())
        };
        eventually("the copy", is_there).await;
    }
    stop(&mut child).await;
}

/// `apply` doesn't wait if an error doesn't pass by itself.
#[tokio::test]
async fn a_target_that_is_not_there_is_told_at_once() {
    let pair = Pair::of("create table t (id int primary key)").await;
    let nowhere = pair.target.options.clone().database("nowhere").to_url_lossy().to_string();
    for (to, why) in [
        (nowhere, "does not exist"),
        (pair.target.url_as("nobody_is_called_so", "secret"), "the target database refused the connection"),
    ] {
        let (code, printed, said) = pair.apply_to(&to, &["--server", &pair.service.address]).output().await;
        assert_eq!((code, printed.as_str()), (1, ""), "{said}");
        assert!(said.contains(why) && !said.contains("secret"), "{said}");
        assert!(!said.contains("trying again"), "{said}");
    }
}

/// An obstacle to one export doesn't stop a newer full one. A place without exports of the table says what it has.
#[tokio::test]
async fn a_folder_goes_on_with_its_newest_full_export() {
    let pair = Pair::started(SIMPLE, |start| start.with("MANIFESTS", "on")).await;
    let (to, from) = (pair.target.url(), pair.service.output().to_str().unwrap());
    for (dataset, consumer) in [("t", "b"), ("u", "a")] {
        if consumer == "b" {
            export(&pair.service, "full", "t", "a").await;
        }
        let call = ["apply", "--to", &to, "--consumer", consumer, "--dataset", dataset, "--from", from];
        let (printed, said) = ends(far(&call).output().await, 1, "no_exports: ");
        assert!(printed.is_empty() && said.contains("t of a"), "{printed}{said}");
    }
    ends(pair.apply_from(&[]).output().await, 0, "");
    // One of another format, and one whose file is gone.
    pair.source.run("update t set name = 'x' where id = 3").await;
    let body = serde_json::json!({ "dataset": "t", "format": "ndjson" });
    crate::catalog::ended(&pair.service, "/exports/delta", Some("a"), body).await;
    let lost = export(&pair.service, "delta", "t", "a").await;
    let (code, printed, said) = pair.apply_from(&[]).output().await;
    assert!((code, printed.as_str()) == (1, "") && said.contains("a newer full export goes on"), "{said}");
    std::fs::remove_file(pair.service.path(&lost)).unwrap();
    export(&pair.service, "full", "t", "a").await;
    let (code, printed, said) = pair.apply_from(&[]).output().await;
    assert_eq!((code, printed.lines().count()), (0, 1), "{said}");
    assert!(said.contains("going on with the full export 4"), "{said}");
    pair.require_equal("by the full export").await;
}

/// The rights that the documentation asks for are enough: a schema of its own, and a table.
#[tokio::test]
async fn a_schema_of_its_own_is_enough() {
    let pair = Pair::of(SIMPLE).await;
    let role = pair.target.role().await;
    let statements = format!("create schema cdc_apply authorization {role}; grant create on schema public to {role}");
    pair.target.run(&statements).await;
    silent(pair.apply_to(&pair.target.url_as(&role, "pass"), &["--server", &pair.service.address]).output().await);
    pair.require_equal("by a role with little").await;
}

#[tokio::test]
async fn a_key_of_a_domain_is_of_the_type_beneath_it() {
    const DOMAINS: &str = "create domain phone as varchar(25); create domain code as phone;
                           create type mood as enum ('a', 'b'); create domain feeling as mood";
    let table = "create table t (ph phone, c code, m feeling, v int, primary key (ph, c, m))";
    let pair = Pair::of(&format!("{DOMAINS}; {table}; insert into t values ('1', '2', 'a', 1)")).await;
    // Types of the same names in the target aren't taken.
    for target in [DOMAINS, "drop domain phone, code, feeling; drop type mood"] {
        pair.target.run(target).await;
        let (_, said) = ends(pair.apply(&[]).output().await, 0, "the column m is text there");
        assert_eq!(said.lines().count(), 1, "{said}");
        pair.require_equal(target).await;
        let types = "select array_agg(format_type(atttypid, atttypmod) order by attnum) from pg_attribute
                     where attrelid = 't'::regclass and attnum > 0";
        let expected = ["character varying(25)", "character varying(25)", "text", "integer"];
        assert_eq!(pair.target.one::<Vec<String>>(types).await, expected);
        pair.target.run("drop table t; drop schema cdc_apply cascade").await;
    }
}

/// A connection whose packets are lost on the way, as by a firewall that lost its table.
#[tokio::test]
async fn a_target_that_falls_silent_is_told_of_and_tried_again() {
    let pair = Pair::of(SIMPLE).await;
    let proxy = Proxy::to(&pair.target.options).await;
    let to = network::url(&pair.target, &proxy);
    let apply = || {
        let call = pair.apply_to(&to, &["--server", &pair.service.address]);
        call.with("FAILPOINTS", "client.quiet=time:500,apply.silence=time:2000")
    };
    silent(apply().output().await);
    pair.source.run("update t set name = 'x' where id < 4").await;
    proxy.silence("create temporary table cdc_apply_stage");
    let (printed, said) = ends(apply().output().await, 0, "the target database has fallen silent");
    assert_eq!(printed, "t: delta 2  3 rows written, 0 deleted\n");
    assert!(said.contains("no answer for 2 seconds") && said.contains("trying again for a minute"), "{said}");
    pair.require_equal("after the silence").await;
}

#[tokio::test]
async fn a_wait_for_a_lock_of_the_target_is_told() {
    let pair = Pair::of(SIMPLE).await;
    pair.applied(&[]).await;
    pair.source.run("update t set name = 'x' where id < 4").await;
    let holder = pair.target.open("lock table public.t in share mode").await;
    let (mut child, _folder) = pair.apply(&[]).with("FAILPOINTS", "client.quiet=time:500").spawn_piped();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = tokio::time::timeout(HANG_TIMEOUT, said.next_line()).await.expect("a line").unwrap().unwrap();
    assert!(line.starts_with("cdc-export: waiting for a lock of the target, which process "), "{line}");
    holder.rollback().await.unwrap();
    assert!(child.wait().await.unwrap().success());
    pair.require_equal("after the lock").await;
}

/// The source goes back, and its service numbers anew. The table goes by the chain, and not by the order.
#[tokio::test]
async fn a_table_is_exact_where_the_source_and_the_order_go_back() {
    let pair = Pair::of(SIMPLE).await;
    for id in [101, 102, 103] {
        pair.source.run(&format!("insert into t values ({id}, 'forgotten')")).await;
        pair.applied(&[]).await;
    }
    forget_after(&pair.source, 1).await;
    pair.source.run("delete from t where id > 101; update t set name = 'restored' where id = 1").await;
    let Pair { source, target, catalog, service } = pair;
    service.stop().await;
    let service = catalog.start(&source).service().await;
    let pair = Pair { source, target, catalog, service };
    pair.healed("it was restored").await;
    pair.require_equal("the full export").await;
    pair.source.run("update t set name = 'afterwards' where id = 2").await;
    pair.applied(&[]).await;
    pair.require_equal("a delta").await;
}

#[tokio::test]
async fn an_export_with_more_columns_than_a_table_can_have_is_refused() {
    let columns: String = (1..1600).map(|n| format!(", c{n} bool")).collect();
    let pair = Pair::of(&format!("create table t (id int primary key{columns}); insert into t values (1)")).await;
    let said = pair.refused(&[], "too_many_columns: the export ").await;
    assert!(said.contains("has 1601 columns") && said.contains("`columns` of the dataset"), "{said}");
    // A full export has no column of ours.
    export(&pair.service, "full", "t", "a").await;
    assert_eq!(pair.applied(&["--request", "none"]).await.len(), 1);
    pair.require_equal("a full export").await;
}
