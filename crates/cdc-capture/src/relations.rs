//! Reads the relations of the database, for patterns.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::dataset::catalog::Catalog;
use crate::dataset::pattern::Candidate;
use crate::source::owners::MEMBERS;
use pg_session::statement::with_pieces;

/// Reads all relations but those of Postgres and of the service, in the order of their names. Only those that a dataset
/// of the catalog names without a schema are visible.
pub async fn read(pool: &PgPool, catalog: &Catalog) -> Result<Vec<Candidate>, sqlx::Error> {
    let without_schema = catalog.iter().filter(|dataset| dataset.table.schema.is_none());
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
    let relations = sqlx::query(AssertSqlSafe(statement)).bind(names).bind(catalog.deleted_columns());
    relations.try_map(relation).fetch_all(pool).await
}
