//! A preview of the service's schema, for statements that need it in a database that has not been migrated.
//!
//! Each session begins with a transaction that creates the needed part of the schema. The transaction is never
//! committed, so the database stays unchanged.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// Creates the tables of the service that are read, with the columns that are read of them. They are empty.
const TABLES: &str = "create table cdc_export.datasets (name text, schema_name text, table_name text);
    create table cdc_export.lanes (dataset text);
    create table cdc_export.keys (datasets text[], revoked_at timestamptz);";

/// Begins the transaction that is never committed.
pub(super) async fn begin(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    // Dropping the transaction would roll it back. sqlx still counts it, so a nested transaction uses a savepoint.
    std::mem::forget(conn.begin().await?);
    let capture = cdc_capture::SCHEMA.replace("{schema_name}", "'cdc_export'").replace("{schema}", "cdc_export");
    let make = format!("-- postgres.preview.begin\n create schema if not exists cdc_export;\n{capture}{TABLES}");
    sqlx::raw_sql(AssertSqlSafe(make)).execute(conn).await.map(drop)
}
