//! Reads the relations of the database, for patterns.

use sqlx::{AssertSqlSafe, PgPool};

use crate::connection::statement::with_pieces;
use crate::dataset::catalog::Catalog;
use crate::dataset::pattern::Candidate;
use crate::source::owners::MEMBERS;

#[derive(sqlx_macros::FromRow)]
struct RelationRow {
    schema_name: String,
    table_name: String,
    owners: Vec<String>,
    is_visible: bool,
    are_owners_trusted: bool,
    is_plain_table: bool,
    is_partition: bool,
    is_unlogged: bool,
    has_key: bool,
    indexed_times: Vec<String>,
    columns: Vec<String>,
}

/// Reads all relations but those of Postgres and of the service, in the order of their names. Only those that a dataset
/// of the catalog names without a schema are visible.
pub async fn read(pool: &PgPool, catalog: &Catalog) -> Result<Vec<Candidate>, sqlx::Error> {
    let without_schema = catalog.iter().filter(|dataset| dataset.table.schema.is_none());
    let names: Vec<_> = without_schema.map(|dataset| dataset.table.name.as_str()).collect();
    let statement = with_pieces(include_str!("relations.sql"), &[MEMBERS]);
    let rows: Vec<RelationRow> =
        sqlx::query_as(AssertSqlSafe(statement)).bind(names).bind(catalog.deleted_columns()).fetch_all(pool).await?;
    let relation = |row: RelationRow| Candidate {
        schema: row.schema_name,
        name: row.table_name,
        is_visible: row.is_visible,
        owners: row.owners,
        are_owners_trusted: row.are_owners_trusted,
        is_plain_table: row.is_plain_table,
        is_partition: row.is_partition,
        is_unlogged: row.is_unlogged,
        has_key: row.has_key,
        indexed_times: row.indexed_times,
        columns: row.columns,
    };
    Ok(rows.into_iter().map(relation).collect())
}
