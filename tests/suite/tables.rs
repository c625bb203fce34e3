//! Tables of every kind through whole exports: what a consumer restores is what the source has.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::catalog::{Catalog, Replica, ended, export};
use crate::harness::{Csv, Database, server_lacks};

/// Types, and an expression for a value of each, which `n` and `random()` vary.
const TYPES: &[(&str, &str)] = &[
    ("smallint", "(n % 60000 - 30000)::smallint"),
    ("integer", "(random() * 2e9 - 1e9)::int"),
    ("bigint", "(random() * 9e18)::bigint"),
    ("real", "case n % 5 when 0 then 'NaN' when 1 then '-Infinity' else (random() * 1e30)::real end"),
    ("double precision", "case n % 5 when 0 then '-0' when 1 then 'Infinity' else random() * 1e-300 end"),
    (
        "numeric",
        "case n % 5 when 0 then 'NaN' when 1 then (n || '.' || repeat('0', n % 40))::numeric else random()::numeric * 10 ^ 30 end",
    ),
    ("numeric(12,3)", "(random() * 1e8)::numeric(12,3)"),
    ("boolean", "n % 2 = 0"),
    (
        "text",
        "case n % 4 when 0 then '' when 1 then E'a,\"b\"\\n\\r\\\\.' when 2 then repeat('ü€😀', n % 50) else n::text end",
    ),
    ("varchar(20)", "left(md5(n::text), n % 20)"),
    ("char(7)", "left(md5(n::text), n % 7)"),
    ("\"char\"", "chr(33 + n % 90)::\"char\""),
    ("name", "md5(n::text)::name"),
    ("uuid", "md5(n::text)::uuid"),
    ("bytea", "decode(md5(n::text), 'hex')"),
    ("json", "format(E'{\"a\" :\\n [%s, \"x\\\\n,\"]}', n)::json"),
    ("jsonb", "jsonb_build_object('n', n, 'deep', array[null, 1.50, n])"),
    (
        "timestamptz",
        "case n % 7 when 0 then 'infinity' when 1 then '4713-01-01 00:00:00+00 BC' else '2000-01-01Z'::timestamptz + random() * n * interval '1 year' end",
    ),
    (
        "timestamp",
        "case n % 7 when 0 then '-infinity' when 1 then '294276-12-31 23:59:59.999999' else '2000-01-01'::timestamp - random() * n * interval '1 day' end",
    ),
    (
        "date",
        "case n % 7 when 0 then 'infinity' when 1 then '5874897-12-31' when 2 then '4713-01-01 BC' else '2000-01-01'::date + n * 37 end",
    ),
    ("time", "case n % 7 when 0 then '24:00' else time '00:00' + random() * interval '1 day' end"),
    ("timetz", "timetz '12:34:56.789+05:30' + n * interval '1 minute'"),
    ("interval", "n * interval '1 month -3 days 04:05:06.789'"),
    ("money", "(n * 1.25)::numeric::money"),
    ("inet", "('10.0.' || n % 256 || '.1/' || 8 + n % 25)::inet"),
    ("cidr", "('10.' || n % 256 || '.0.0/16')::cidr"),
    ("macaddr", "('08:00:2b:01:02:' || lpad(to_hex(n % 256), 2, '0'))::macaddr"),
    ("bit(5)", "(n % 32)::bit(5)"),
    ("bit varying", "(n % 1024)::bit(10)::bit varying"),
    ("point", "point(n, random())"),
    ("xml", "xmlparse(content format('<a b=\"%s\">,</a>', n))"),
    ("tsvector", "to_tsvector('simple', 'a fat cat ' || n)"),
    ("int4range", "int4range(n, n + n % 5)"),
    ("tstzrange", "tstzrange('2000-01-01Z', '2000-01-01Z'::timestamptz + n * interval '1 hour', '[]')"),
    ("int[]", "array[n, null, n + 1]"),
    ("text[]", "array['a,\"b\"', null, '', E'c\\nd', n::text]"),
    ("float8[][]", "array[[random(), n], ['NaN', 'Infinity']]::float8[][]"),
    ("mood", "(enum_range(null::mood))[1 + n % 3]"),
    ("mood[]", "array['sad', 'so, so']::mood[]"),
    ("named", "('n' || n)::named"),
    ("positive", "n + 1"),
    ("pair", "row(n, 'a,\"b\"')::pair"),
    ("hstore", "hstore('k' || n, 'v,\"w\"')"),
    ("hstore[]", "array[hstore('k', null)]"),
    ("bag", "row(hstore('k', 'v'), n)::bag"),
    ("citext", "('Ab' || n)::citext"),
    ("ltree", "('a.b' || n)::ltree"),
    ("oid", "n::oid"),
    ("regclass", "'pg_class'::regclass"),
    ("pg_lsn", "format('16/%s', to_hex(n))::pg_lsn"),
    ("jsonpath", "format('$.a[%s]', n)::jsonpath"),
];

const OWN_TYPES: &str = "create extension hstore; create extension citext; create extension ltree;
    create type mood as enum ('sad', 'so, so', 'happy \"!\"');
    create domain named as text not null check (value <> 'x');
    create domain positive as int check (value > 0);
    create type pair as (a int, b text); create type bag as (h hstore, n int)";

/// A table of some of the types, a fifth of its values null where they may be.
fn table(name: &str, types: &[usize]) -> String {
    let column = |(i, at): (usize, &usize)| format!("\"c {i}\" {}", TYPES[*at].0);
    let columns: Vec<_> = types.iter().enumerate().map(column).collect();
    let value = |at: &usize| match TYPES[*at] {
        ("named", value) => value.to_owned(),
        (_, value) => format!("case when random() < 0.8 then {value} end"),
    };
    let values: Vec<_> = types.iter().map(value).collect();
    format!(
        "create table {name} (id bigint primary key, {});
         insert into {name} select n, {} from generate_series(1, 60) n",
        columns.join(", "),
        values.join(", ")
    )
}

async fn database() -> Database {
    let database = Database::empty().await;
    database.run(OWN_TYPES).await;
    database
}

/// A full export of `t`, then changes and deltas; each time the copy is the source.
async fn passes(database: &Database) {
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"");
    catalog.track(database, "t").await;
    let service = catalog.start(database).service().await;
    let replica = Replica { database, source: "select * from t", key: &["id"] };
    replica.begin(&service, &export(&service, "full", "t", "a").await).await;
    replica.require_equal().await;
    database.run("delete from t where id % 3 = 0; update t set id = id + 1000 where id % 3 = 1").await;
    let delta = export(&service, "delta", "t", "a").await;
    assert_eq!(delta["rowsExported"], 60, "{delta}");
    replica.apply(&service, &delta).await;
    replica.require_equal().await;
    for format in ["ndjson", "parquet"] {
        let job = ended(&service, "/exports/full", Some("b"), json!({ "dataset": "t", "format": format })).await;
        let not_in_format = format == "parquet" && job["error"]["code"] == "not_in_format";
        assert!(job["status"] == "completed" || not_in_format, "{job}");
    }
    service.stop().await;
}

#[tokio::test]
async fn every_type_comes_back_through_full_exports_and_deltas() {
    let database = database().await;
    database.run(&table("t", &(0..TYPES.len()).collect::<Vec<_>>())).await;
    passes(&database).await;
}

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
        database
            .run(&format!(
                "create table t{i} ({columns}, n int, o int, tg_relid int, root int, old text, key text);
                 insert into t{i} select {values}, n, n, n, n, 'old', 'key' from generate_series(1, 20) n"
            ))
            .await;
    }
    let catalog = Catalog::tracked(&database, &blocks).await;
    let service = catalog.start(&database).service().await;
    for (i, (columns, values, key)) in keys.iter().enumerate() {
        let (dataset, source) = (format!("t{i}"), format!("select * from t{i}"));
        let replica = Replica { database: &database, source: &source, key };
        replica.begin(&service, &export(&service, "full", &dataset, "a").await).await;
        let names: Vec<_> = key.iter().map(|name| format!("\"{name}\"")).collect();
        let names = names.join(", ");
        database
            .run(&format!(
                "delete from t{i} where n <= 3; update t{i} set o = 0 where n in (5, 6);
                 update t{i} set ({names}) = (select {values} from (select t{i}.n + 100 as n) as moved) where n in (7, 8);
                 insert into t{i} ({names}, n) select {values}, n from generate_series(60, 61) n"
            ))
            .await;
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
    for (i, (columns, ..)) in keys.iter().enumerate() {
        let dataset = format!("t{i}");
        let (_, plan, said) = Catalog::of(&blocks[i])
            .command(&database, &["plan", "delta", "--dataset", &dataset, "--consumer", "a"])
            .await;
        assert!(plan.matches(&format!("using t{i}_pkey")).count() >= 2, "{columns}: {plan} {said}");
        assert!(
            plan.matches("Index Cond: (k").count() + plan.matches("Index Cond: ((k").count() >= 2 || i == 11,
            "{plan}"
        );
    }
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
async fn a_table_of_1600_columns_comes_back() {
    let database = database().await;
    // As wide as a row may be: 8 kB hold no more.
    let column = |n| if n % 2 == 0 { format!("c{n} smallint default {n}") } else { format!("c{n} text") };
    let columns: Vec<_> = (2..=1600).map(column).collect();
    let create = format!("create table t (id smallint primary key, {})", columns.join(", "));
    database.run(&format!("{create}; insert into t (id, c3) select n, 'x' from generate_series(1, 60) n")).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"");
    catalog.track(&database, "t").await;
    let service = catalog.start(&database).service().await;
    let replica = Replica { database: &database, source: "select * from t", key: &["id"] };
    replica.begin(&service, &export(&service, "full", "t", "a").await).await;
    replica.require_equal().await;
    database.run("delete from t where id <= 20; update t set c3 = 'y' where id > 40").await;
    // A table for the whole of it, the operation too, can't be made.
    let delta = Csv::read(&service.path(&export(&service, "delta", "t", "a").await));
    assert_eq!((delta.header.len(), delta.rows.len()), (1601, 40));
    assert_eq!(delta.rows[0][..5], ["DELETE", "1", "2", "x", "4"]);
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

/// Runs pgbench against a database.
pub(crate) async fn pgbench(database: &Database, arguments: &[&str]) {
    // Without the parameters that are our driver's own.
    let mut url = reqwest::Url::parse(&database.url()).unwrap();
    let host = url.query_pairs().find(|(name, _)| name == "host").map(|(_, host)| host.into_owned());
    url.set_query(host.map(|host| format!("host={host}")).as_deref());
    let program = database.programs().await.join("pgbench");
    let output = Command::new(program).args(arguments).arg(url.as_str()).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn deltas_follow_a_table_that_pgbench_writes_to() {
    if server_lacks("pgbench").await {
        return;
    }
    let database = Database::empty().await;
    pgbench(&database, &["--initialize", "--quiet", "--scale=1"]).await;
    let block = |name: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"pgbench_{name}\"\n");
    let catalog = Catalog::of(&["accounts", "tellers", "branches"].map(block).concat());
    for dataset in ["accounts", "tellers", "branches"] {
        catalog.track(&database, dataset).await;
    }
    let service = catalog.start(&database).service().await;
    let key = ["aid"];
    let replica = Replica { database: &database, source: "select * from pgbench_accounts", key: &key };
    let writing = async { pgbench(&database, &["--client=4", "--transactions=500", "--no-vacuum"]).await };
    let following = async {
        replica.begin(&service, &export(&service, "full", "accounts", "a").await).await;
        let mut changed = 0;
        // Some of them while it writes; that it has ended is not waited for here.
        for _ in 0..10 {
            let delta = export(&service, "delta", "accounts", "a").await;
            changed += delta["rowsExported"].as_u64().unwrap();
            replica.apply(&service, &delta).await;
        }
        changed
    };
    let ((), changed) = tokio::join!(writing, following);
    let last = export(&service, "delta", "accounts", "a").await;
    replica.apply(&service, &last).await;
    replica.require_equal().await;
    // The log of what the only consumer has is gone, or not yet.
    let written: i64 = database.one("select count(distinct aid) from pgbench_history").await;
    assert!(written > 1_000 && changed + last["rowsExported"].as_u64().unwrap() <= 2_000, "{written} {changed}");
    // A table of one row that every transaction changes.
    let branch = export(&service, "delta", "branches", "a").await;
    assert_eq!(branch["rowsExported"], 1);
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
