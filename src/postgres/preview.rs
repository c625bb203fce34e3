//! A preview of the service's schema, for statements that need it in a database that has not been migrated.
//!
//! Each session begins with a transaction that creates the needed part of the schema. The transaction is never
//! committed, so the database stays unchanged.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::postgres::migrations;

/// Creates the tables that are read, with the columns that are read of them. They are empty in a preview.
const TABLES: &str = "create table cdc_export.tracked (schema_name text, table_name text, key text[]);
    create table cdc_export.owned (schema_name text, table_name text);
    create table cdc_export.datasets (name text, schema_name text, table_name text);
    create table cdc_export.lanes (dataset text);
    create table cdc_export.watermarks (dataset text);
    create table cdc_export.keys (datasets text[], revoked_at timestamptz);
    create table cdc_export.masked_columns (dataset text, name text);";

/// Begins the transaction that is never committed.
pub(super) async fn begin(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    // Dropping the transaction would roll it back. sqlx still counts it, so a nested transaction uses a savepoint.
    std::mem::forget(conn.begin().await?);
    let names =
        ["table_of_role", "type_of_role", "primary_key", "widen_search_path"].map(|name| format!("cdc_export.{name}("));
    let functions: String = names.iter().map(|name| migrations::function(name)).collect();
    let make = format!("-- postgres.preview.begin\n create schema if not exists cdc_export;\n{functions}{TABLES}");
    sqlx::raw_sql(AssertSqlSafe(make)).execute(conn).await.map(drop)
}
