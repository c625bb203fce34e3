//! Deletions come once: in the delta after they happened, whatever the watermark is, and by which way it came to be.

mod tables;

use serde_json::{Value, json};

use crate::catalog::{Catalog, Replica, export};
use crate::harness::{Csv, Database};
use crate::soft_deletes::tables::{TABLES, begin, delta, set_watermark};

#[tokio::test]
async fn a_delta_after_a_full_is_empty_and_a_deletion_comes_once() {
    let (database, _catalog, service) = begin().await;
    for (table, deleted) in [("flag", Some("gone = true")), ("stamp", Some("gone = '2026-01-06'")), ("hard", None)] {
        let delete = |ids: &str, at: &str| match deleted {
            Some(set) => format!("update {table} set {set}, at = '{at}' where id in ({ids});"),
            None => format!("delete from {table} where id in ({ids});"),
        };
        let alive = match table {
            "flag" => "select * from flag where not gone",
            "stamp" => "select * from stamp where gone is null",
            _ => "select * from hard",
        };
        let replica = Replica { database: &database, source: alive, key: &["id"] };
        let full = export(&service, "full", table, "a").await;
        assert_eq!(full["watermarkTo"], "2026-01-05T00:00:00.000000Z", "of the live rows");
        replica.begin(&service, &full).await;
        let empty = export(&service, "delta", table, "a").await;
        assert_eq!((&empty["rowsExported"], &empty["continuity"]), (&json!(0), &Value::Null), "{table}: {empty}");
        // One is deleted with a time above the watermark, one with a time below.
        database.run(&(delete("1", "2026-02-01") + &delete("2", "2020-01-01"))).await;
        // An incremental in between takes no deletion away.
        export(&service, "incremental", table, "a").await;
        let job = export(&service, "delta", table, "a").await;
        assert_eq!(job["rowsExported"], 2, "{table}: {job}");
        replica.apply(&service, &job).await;
        replica.require_equal().await;
        assert_eq!(delta(&service, table, "a").await, Vec::<String>::new(), "{table}");
        // A full export has what is deleted before it behind it, and a deletion after it comes again only once.
        database.run(&delete("3", "2026-03-01")).await;
        replica.begin(&service, &export(&service, "full", table, "a").await).await;
        assert_eq!(delta(&service, table, "a").await, Vec::<String>::new(), "{table}");
        database.run(&delete("4", "2026-03-02")).await;
        let job = export(&service, "delta", table, "a").await;
        assert_eq!(job["rowsExported"], 1, "{table}: {job}");
        replica.apply(&service, &job).await;
        replica.require_equal().await;
        assert_eq!(delta(&service, table, "a").await, Vec::<String>::new(), "{table}");
    }
    // A new consumer learns all deletions. One that begins with an incremental learns the deletions since then.
    assert!(delta(&service, "flag", "new").await.contains(&"DELETE 5".to_owned()));
    database.run("update flag set gone = false, at = '2026-04-01' where id = 4").await;
    export(&service, "incremental", "flag", "late").await;
    database.run("update flag set gone = true, at = '2026-01-02' where id = 4").await;
    assert_eq!(delta(&service, "flag", "late").await, ["DELETE 4"]);
    assert_eq!(delta(&service, "flag", "late").await, Vec::<String>::new());
}

/// Without a log the watermark tells deletions, and an incremental export moves it past them.
#[tokio::test]
async fn without_a_log_an_incremental_takes_no_deletion_away() {
    let database = Database::empty_with(TABLES).await;
    let catalog = Catalog::of(
        "[[dataset]]\nname = \"flag\"\ntable = \"flag\"\nupdated_at = \"at\"\ndeleted = \"gone\"\ncapture = \"timestamp\"\noverlap = \"0s\"\n",
    );
    let service = catalog.start(&database).service().await;
    export(&service, "full", "flag", "a").await;
    delta(&service, "flag", "a").await;
    for (id, day) in [(1, 10), (2, 20)] {
        let statements = format!(
            "update flag set gone = true, at = timestamptz '2026-02-01' + {day} * interval '1 day' where id = {id};
             update flag set n = n + 1, at = timestamptz '2026-02-02' + {day} * interval '1 day' where id = 3"
        );
        database.run(&statements).await;
        export(&service, "incremental", "flag", "a").await;
    }
    let mut rows = delta(&service, "flag", "a").await;
    rows.retain(|row| row.starts_with("DELETE"));
    assert_eq!(rows, ["DELETE 1", "DELETE 2"]);
    // The delta's own watermark tells again what is due.
    assert_eq!(delta(&service, "flag", "a").await, Vec::<String>::new());
    // Set back by hand, and past it by an incremental.
    set_watermark(&database, "flag", "a", "2026-02-15T00:00:00Z").await;
    export(&service, "incremental", "flag", "a").await;
    assert_eq!(delta(&service, "flag", "a").await, ["DELETE 2"]);
}

/// A live row's flag isn't read if it can only be `false`. It is read if it may be null, as that of a table that
/// inherits the column without its constraint.
#[tokio::test]
async fn a_full_export_has_the_flag_that_each_live_row_has() {
    let database = Database::empty().await;
    // Since Postgres 18 a child's column may not be null where its parent's may not.
    let child = if database.postgres_version().await < 18 { "null" } else { "false" };
    let loosen = if child == "null" { "alter table child alter gone drop not null;" } else { "" };
    let schema = format!(
        "create table lone (gone bool not null default false, id int primary key, at timestamptz not null default now());
         create table loose (id int primary key, gone bool, at timestamptz not null default now());
         create table parent (id int primary key, gone bool not null, at timestamptz not null default now());
         create table child () inherits (parent); {loosen}
         create table stamp (id int primary key, at timestamptz not null default now(), gone timestamptz);
         insert into lone values (false, 1), (true, 2), (false, 3);
         insert into loose values (1, false), (2, true), (3, null);
         insert into parent values (1, false), (2, true);
         insert into child values (3, {child});
         insert into stamp (id, gone) values (1, null), (2, now()), (3, null)"
    );
    database.run(&schema).await;
    let cases = [
        ("lone", Some("false")),
        ("loose", Some("")),
        ("parent", Some(if child == "null" { "" } else { "false" })),
        ("stamp", Some("")),
    ];
    let of = |(name, _): &(&str, Option<&str>)| {
        let capture = match *name {
            "parent" => "capture = \"none\"",
            _ => "key = [\"id\"]\nupdated_at = \"at\"\ncapture = \"timestamp\"",
        };
        format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\ndeleted = \"gone\"\n{capture}\n")
    };
    let catalog = Catalog::of(&cases.iter().map(of).collect::<String>());
    let service = catalog.start(&database).service().await;
    for (name, third) in cases {
        let file = Csv::read(&service.path(&export(&service, "full", name, "a").await));
        let column = |name: &str| file.header.iter().position(|it| it == name).unwrap();
        let (id, gone, at) = (column("id"), column("gone"), column("at"));
        let mut rows: Vec<_> = file.rows.iter().map(|row| (row[id].clone(), row[gone].clone())).collect();
        rows.sort();
        let first = if name == "stamp" { "" } else { "false" };
        let expected = [Some(("1", first)), third.map(|third| ("3", third))].into_iter().flatten();
        let expected: Vec<_> = expected.map(|(id, gone)| (id.to_owned(), gone.to_owned())).collect();
        assert_eq!(rows, expected, "{name}");
        assert!(file.rows.iter().all(|row| row[at].ends_with('Z')), "{name}: {:?}", file.rows);
    }
}
