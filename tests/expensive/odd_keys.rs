//! Keys whose `=` isn't identity: one of each kind through every export, and few changes of many rows.

#[path = "../suite/odd_keys/texts.rs"]
mod texts;

use crate::catalog::{Catalog, export};
use crate::odd_keys::texts::{Texts, database};
use crate::plans::{log_plans, plans};

/// A key's columns, two of its values that are the same to the type and no others, and a third one.
const KEYS: &[(&str, &str, &str, &str)] = &[
    ("k ext.citext", "'Key'", "'KEY'", "'other'"),
    ("k ext.folded", "'Key'", "'KEY'", "'other'"),
    ("k ext.citext[]", "'{Key}'", "'{kEY}'", "'{other}'"),
    ("k ext.labelled", "row('Key', 1)", "row('KEY', 1)", "row('other', 1)"),
    ("k numeric", "1.0", "1.00", "2"),
    ("k numeric[]", "'{1.0}'", "'{1.00}'", "'{2}'"),
    ("k float8", "'0'", "'-0'", "1"),
    ("k real", "'-0'", "'0'", "1"),
    ("k interval", "'1 day'", "'24 hours'", "'2 days'"),
    ("k jsonb", "'{\"a\": 1.0}'", "'{\"a\": 1.00}'", "'{}'"),
    ("k numrange", "'[1.0,2.0)'", "'[1.00,2.0)'", "'[3,4)'"),
    ("k text collate ci", "'Key'", "'kEy'", "'other'"),
    ("k varchar(9) collate ci", "'Key'", "'kEy'", "'other'"),
    ("k text not null", "'Key'", "'kEy'", "'other'"),
    ("k bpchar", "'key'", "'key  '", "'other'"),
    ("k text collate ci, l numeric, m int", "'Key', 1.0, 1", "'KEY', 1.00, 1", "'Key', 2, 1"),
    ("m int, k ext.citext", "7, 'Key'", "7, 'KEY'", "8, 'Key'"),
];

fn names_of(columns: &str) -> Vec<&str> {
    columns.split(", ").map(|column| column.split_whitespace().next().unwrap()).collect()
}

#[tokio::test]
async fn a_key_that_is_another_text_is_another_key() {
    let database = database().await;
    let block = |(i, (columns, ..)): (usize, &(&str, &str, &str, &str))| {
        let key = if columns.contains("not null") { "key = [\"k\"]\n" } else { "" };
        format!("[[dataset]]\nname = \"t{i}\"\ntable = \"t{i}\"\n{key}")
    };
    let blocks: Vec<_> = KEYS.iter().enumerate().map(block).collect();
    for (i, (columns, first, _, other)) in KEYS.iter().enumerate() {
        // An index of another collation than its column's is what tells these rows apart.
        let key = match columns.contains("not null") {
            true => format!("n int); create unique index on t{i} (k collate ci)"),
            false => format!("n int, primary key ({}))", names_of(columns).join(", ")),
        };
        let statements =
            format!("create table t{i} ({columns}, {key}; insert into t{i} values ({first}, 1), ({other}, 2)");
        database.run(&statements).await;
    }
    let catalog = Catalog::tracked(&database, &blocks).await;
    let service = catalog.start(&database).service().await;
    for (i, (columns, first, second, _)) in KEYS.iter().enumerate() {
        let (table, names) = (format!("t{i}"), names_of(columns));
        let texts = names.iter().map(|name| format!("concat({name})")).collect::<Vec<_>>().join(", ");
        let set = |values: &str, n: i32| {
            format!("update {table} set ({}, n) = ({values}, {n}) where n <> 2", names.join(", "))
        };
        let (mut deltas, mut mixed) = (Texts::of(names.len()), Texts::of(names.len()));
        deltas.exports(&service, "full", &table, "a").await;
        mixed.exports(&service, "full", &table, "b").await;
        database.run(&set(second, 1)).await;
        let (job, _) = deltas.exports(&service, "delta", &table, "a").await;
        deltas.require(&database, &table, &texts, columns).await;
        assert_eq!(job["rowsExported"], 2, "{columns}: a DELETE of the old text, and the row under the new one");
        mixed.exports(&service, "incremental", &table, "b").await;
        // There and back in one export; by a DELETE and an INSERT, too.
        database.run(&format!("{}; {}; {}", set(first, 3), set(second, 4), set(first, 5))).await;
        deltas.exports(&service, "delta", &table, "a").await;
        deltas.require(&database, &table, &texts, columns).await;
        let statements = format!(
            "delete from {table} where n = 5; insert into {table} values ({second}, 6);
             delete from {table} where n = 6; insert into {table} values ({first}, 7)"
        );
        database.run(&statements).await;
        deltas.exports(&service, "delta", &table, "a").await;
        deltas.require(&database, &table, &texts, columns).await;
        // An incremental has the row under its new text, the next delta the DELETE of the old one, which to a consumer
        // whose own column is of that type is the row: it comes again.
        mixed.exports(&service, "incremental", &table, "b").await;
        database.run(&set(second, 8)).await;
        mixed.exports(&service, "incremental", &table, "b").await;
        let (_, file) = mixed.exports(&service, "delta", &table, "b").await;
        mixed.require(&database, &table, &texts, columns).await;
        let operations: Vec<_> = file.rows.iter().map(|row| (row[0].as_str(), row.last().unwrap().as_str())).collect();
        assert_eq!(operations, [("DELETE", ""), ("UPDATE", "8")], "{columns}");
        deltas.exports(&service, "delta", &table, "a").await;
        database.run(&format!("delete from {table}")).await;
        deltas.exports(&service, "delta", &table, "a").await;
        assert_eq!(deltas.rows.len(), 0, "{columns}");
    }
}

#[tokio::test]
async fn few_changes_of_many_rows_are_found_by_the_index_of_an_odd_key() {
    let database = database().await;
    let schema = "create table t (k ext.citext, l numeric, n int, primary key (k, l));
                  insert into t select 'Key' || n, n / 2.0, n from generate_series(1, 200000) n; analyze t";
    database.run(schema).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\n");
    let service = catalog.serving(&database, &["t"]).await;
    for consumer in ["a", "b"] {
        export(&service, "full", "t", consumer).await;
    }
    service.stop().await;
    database.run("update t set n = 0 where n % 100 = 1; update t set k = upper(k) where n % 100 = 2").await;
    log_plans(&database).await;
    let service = catalog.start(&database).service().await;
    assert_eq!(export(&service, "incremental", "t", "b").await["rowsExported"], 2000 + 2000);
    assert_eq!(export(&service, "delta", "t", "a").await["rowsExported"], 2000 + 2 * 2000);
    let plans = plans(&database, "-- source.copy.changes");
    assert_eq!(plans.len(), 3, "of an incremental, and of the deletions and the rows of a delta");
    for plan in plans {
        assert!(plan.contains("using t_pkey on t u") && !plan.contains("Seq Scan on t "), "{plan}");
    }
}
