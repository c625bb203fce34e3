//! Statements that are made of the target's own names.

use sqlx::{AssertSqlSafe, PgConnection};

/// Runs a statement, headed by its name. Returns how many rows it changed.
pub(super) async fn run(conn: &mut PgConnection, name: &str, statement: &str) -> Result<u64, sqlx::Error> {
    let statement = format!("-- apply.{name}\n {statement}");
    Ok(sqlx::raw_sql(AssertSqlSafe(statement)).execute(conn).await?.rows_affected())
}
