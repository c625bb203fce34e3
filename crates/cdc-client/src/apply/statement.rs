//! Runs statements that contain names from the target.

use sqlx::{AssertSqlSafe, PgConnection};

use pg_session::failure::{SqlFailure, sqlstate};

/// Runs a statement, with its name in a leading comment. Returns the number of changed rows.
pub(super) async fn run(conn: &mut PgConnection, name: &str, statement: &str) -> Result<u64, sqlx::Error> {
    let statement = format!("-- apply.{name}\n {statement}");
    Ok(sqlx::raw_sql(AssertSqlSafe(statement)).execute(conn).await?.rows_affected())
}

/// Runs statements that create something. Does nothing if another transaction has just created it.
pub(super) async fn run_unless_exists(conn: &mut PgConnection, statements: String) -> Result<(), sqlx::Error> {
    run(conn, "statement.savepoint", "savepoint cdc_apply_create").await?;
    match sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *conn).await {
        Err(error) if is_there_already(&error) => {
            run(conn, "statement.roll_back", "rollback to cdc_apply_create").await.map(drop)
        }
        created => created.map(drop),
    }
}

fn is_there_already(error: &sqlx::Error) -> bool {
    SqlFailure::of(error) == SqlFailure::Duplicate || matches!(&*sqlstate(error), "42P06" | "42P07")
}
