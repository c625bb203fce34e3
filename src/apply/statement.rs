//! Runs statements that contain names from the target.

use sqlx::{AssertSqlSafe, PgConnection};

/// Runs a statement, with its name in a leading comment. Returns the number of changed rows.
pub(super) async fn run(conn: &mut PgConnection, name: &str, statement: &str) -> Result<u64, sqlx::Error> {
    let statement = format!("-- apply.{name}\n {statement}");
    Ok(sqlx::raw_sql(AssertSqlSafe(statement)).execute(conn).await?.rows_affected())
}
