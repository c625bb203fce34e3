//! A consumer that knows no type, and a database with types that live off the search_path.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::catalog::export;
use crate::harness::{Csv, Database, Service};

/// A consumer that knows no type: rows by the texts of their keys, the last of them a number.
pub(crate) struct Texts {
    pub(crate) rows: BTreeMap<Vec<String>, String>,
    pub(crate) columns: usize,
}

impl Texts {
    /// Makes a consumer of a table whose first `columns` columns are the key.
    pub(crate) fn of(columns: usize) -> Texts {
        Texts { rows: BTreeMap::new(), columns }
    }

    /// Runs an export that must complete, and loads it. Returns its job and its file.
    pub(crate) async fn exports(
        &mut self,
        service: &Service,
        export_type: &str,
        dataset: &str,
        consumer: &str,
    ) -> (Value, Csv) {
        let job = export(service, export_type, dataset, consumer).await;
        let file = Csv::read(&service.path(&job));
        if export_type == "full" {
            self.rows.clear();
        }
        for row in &file.rows {
            let (operation, row) = if export_type == "delta" { (&*row[0], &row[1..]) } else { ("UPDATE", &row[..]) };
            let (key, rest) = row.split_at(self.columns);
            match operation {
                "DELETE" => drop(self.rows.remove(key)),
                _ => drop(self.rows.insert(key.to_vec(), rest.join("|"))),
            }
        }
        (job, file)
    }

    /// Requires exactly the rows of a table, whose other column is `n`.
    pub(crate) async fn require(&self, database: &Database, table: &str, key: &str, context: &str) {
        let rows: Vec<(Vec<String>, String)> =
            sqlx::query_as(sqlx::AssertSqlSafe(format!("select array[{key}]::text[], concat(n) from {table}")))
                .fetch_all(&database.pool)
                .await
                .unwrap();
        assert_eq!(self.rows, rows.into_iter().collect::<BTreeMap<_, _>>(), "{context}");
    }
}

pub(crate) const OWN_TYPES: &str = "create schema ext;
    create extension citext schema ext; create extension ltree schema ext; create extension cube schema ext;
    create extension seg schema ext; create extension isn schema ext;
    create domain ext.folded as ext.citext; create type ext.labelled as (label ext.citext, n int);
    create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";

pub(crate) async fn database() -> Database {
    Database::empty_with(OWN_TYPES).await
}
