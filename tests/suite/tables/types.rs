//! Tables of every type, and the exports that each of them goes through.

use serde_json::json;

use crate::catalog::{Catalog, Replica, ended, export};
use crate::harness::Database;

/// Types, and an expression for a value of each, which `n` and `random()` vary.
pub(crate) const TYPES: &[(&str, &str)] = &[
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
    ("xml", "xmlparse(content case n % 2 when 0 then 'no, document' else format('<a b=\"%s\">,</a>', n) end)"),
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

pub(crate) const OWN_TYPES: &str = "create extension hstore; create extension citext; create extension ltree;
    create type mood as enum ('sad', 'so, so', 'happy \"!\"');
    create domain named as text check (value <> 'x');
    create domain positive as int check (value > 0);
    create type pair as (a int, b text); create type bag as (h hstore, n int)";

/// A table of some of the types, a fifth of its values null where they may be.
pub(crate) fn table(name: &str, types: &[usize]) -> String {
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

pub(crate) async fn database() -> Database {
    Database::empty_with(OWN_TYPES).await
}

/// A full export of `t`, then changes and deltas; each time the copy is the source.
pub(crate) async fn passes(database: &Database) {
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"");
    catalog.track(database, "t").await;
    let service = catalog.start(database).service().await;
    let replica = Replica { database, source: "select * from t", key: &["id"] };
    replica.begin(&service, &export(&service, "full", "t", "a").await).await;
    replica.require_equal().await;
    // A writer may have any settings.
    let writer = Database::at(database.options.clone());
    writer.run("delete from t where id % 3 = 0; update t set id = id + 1000 where id % 3 = 1").await;
    let delta = export(&service, "delta", "t", "a").await;
    assert_eq!(delta["rowsExported"], 60, "{delta}");
    replica.apply(&service, &delta).await;
    replica.require_equal().await;
    let formats = if cfg!(feature = "parquet") { &["ndjson", "parquet"][..] } else { &["ndjson"] };
    for &format in formats {
        let job = ended(&service, "/exports/full", Some("b"), json!({ "dataset": "t", "format": format })).await;
        let not_in_format = format == "parquet" && job["error"]["code"] == "not_in_format";
        assert!(job["status"] == "completed" || not_in_format, "{job}");
    }
}
