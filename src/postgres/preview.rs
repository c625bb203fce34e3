//! A look at a database that nobody has migrated yet, by the statements that need our schema: each session begins with
//! a transaction that makes as much of the schema as they need, and that nobody commits. When the session ends, nothing
//! of it was ever there.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::postgres::migrations;

/// What statements about a table find of ours where no table is tracked.
const TRACKED: &str = "create table cdc_export.tracked (schema_name text, table_name text, key text[])";

/// Begins the transaction that is never committed.
pub(super) async fn begin(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    // Not dropped, which would roll it back. sqlx knows of it all the same: what begins a transaction of its own gets a
    // savepoint.
    std::mem::forget(conn.begin().await?);
    let names =
        ["table_of_role", "type_of_role", "primary_key", "widen_search_path"].map(|name| format!("cdc_export.{name}("));
    let functions: String = names.iter().map(|name| migrations::function(name)).collect();
    let make = format!("-- postgres.preview.begin\n create schema if not exists cdc_export;\n{functions}{TRACKED}");
    sqlx::raw_sql(AssertSqlSafe(make)).execute(conn).await.map(drop)
}
