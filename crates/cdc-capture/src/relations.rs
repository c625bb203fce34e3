//! Reads the relations of the database, for patterns.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgPool, Row};

use std::sync::Arc;

use crate::owners::MEMBERS;
use cdc_dataset::Dataset;
use pg_session::statement::with_pieces;

/// A relation of the database, as far as a pattern needs to know it.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub schema: String,
    pub name: String,
    /// True if a name without a schema means it.
    pub is_visible: bool,
    /// Its owner, and those of its partitions.
    pub owners: Vec<String>,
    /// True if all its owners are trusted unless a pattern names other ones.
    pub are_owners_trusted: bool,
    /// False for views, foreign tables and tables with rules: reading them runs code of their owners.
    pub is_plain_table: bool,
    pub is_partition: bool,
    /// True if a crash of Postgres empties it.
    pub is_unlogged: bool,
    /// True if it has a primary key.
    pub has_key: bool,
    /// The time columns with which an index begins.
    pub indexed_times: Vec<String>,
    /// The columns that it has of those that patterns name as `deleted`.
    pub columns: Vec<String>,
}

impl Candidate {
    /// Reads all relations but those of Postgres and of the service, in the order of their names. Only those that a
    /// dataset names without a schema are visible. `deleted` are columns of which each relation says whether it has
    /// them.
    pub async fn read(
        pool: &PgPool,
        datasets: &[Arc<Dataset>],
        deleted: Vec<&str>,
    ) -> Result<Vec<Candidate>, sqlx::Error> {
        let without_schema = datasets.iter().filter(|dataset| dataset.table.schema.is_none());
        let names: Vec<_> = without_schema.map(|dataset| dataset.table.name.as_str()).collect();
        let statement = with_pieces(include_str!("relations.sql"), &[MEMBERS]);
        let relation = |row: PgRow| {
            Ok(Candidate {
                schema: row.try_get("schema_name")?,
                name: row.try_get("table_name")?,
                is_visible: row.try_get("is_visible")?,
                owners: row.try_get("owners")?,
                are_owners_trusted: row.try_get("are_owners_trusted")?,
                is_plain_table: row.try_get("is_plain_table")?,
                is_partition: row.try_get("is_partition")?,
                is_unlogged: row.try_get("is_unlogged")?,
                has_key: row.try_get("has_key")?,
                indexed_times: row.try_get("indexed_times")?,
                columns: row.try_get("columns")?,
            })
        };
        let relations = sqlx::query(AssertSqlSafe(statement)).bind(names).bind(deleted);
        relations.try_map(relation).fetch_all(pool).await
    }
}
