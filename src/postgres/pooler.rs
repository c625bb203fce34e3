//! Whether connections are sessions of the server. A pooler in transaction mode lends a session for one transaction only: what
//! the service sets, locks, prepares and listens to would be another client's a moment later.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use uuid::Uuid;

use crate::postgres::{Database, Error, connect};

/// Other clients of the pooler may happen to leave us the same session for a while.
const ROUNDS: u32 = 3;
/// So often in turn, a pooler that lends its sessions round robin comes to another one.
const LOOKS: u32 = 3;
/// A pooler without a session to spare for the second connection lets it wait.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// A session as one can recognise it: the server's process, and a mark that was left there.
#[derive(PartialEq, Eq)]
struct Seen {
    process: String,
    mark: String,
}

/// Checks that each connection is a session of its own, and stays that one.
///
/// # Errors
/// If they aren't, or the server fails.
pub(crate) async fn require_sessions(conn: &mut PgConnection, database: &Database) -> Result<(), Error> {
    let mut other = connect(database).await?;
    let lent = tokio::time::timeout(SESSION_TIMEOUT, are_lent(conn, &mut other)).await;
    if lent.map_err(|_| Error::OneSession)?.map_err(Error::Sql)? {
        return Err(Error::Pooled);
    }
    other.close().await.map_err(Error::Sql)
}

async fn are_lent(conn: &mut PgConnection, other: &mut PgConnection) -> Result<bool, sqlx::Error> {
    for _ in 0..ROUNDS {
        let mark = Uuid::new_v4().simple().to_string();
        let set =
            format!("-- postgres.pooler.mark\n select pg_catalog.set_config('cdc_export.session', '{mark}', false)");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut *conn).await?;
        let marked = look(conn).await?;
        if marked.mark != mark || look(other).await? == marked {
            return Ok(true);
        }
        // Now the other one keeps what it has, and ours may have been that.
        let begun = sqlx::raw_sql("-- postgres.pooler.begin\n begin").execute(&mut *other).await;
        // What a pooler in statement mode answers: protocol_violation.
        if begun.is_err_and(|error| error.as_database_error().is_some_and(|e| e.code().as_deref() == Some("08P01"))) {
            return Ok(true);
        }
        if look(other).await? == marked || moves(conn, &marked).await? {
            return Ok(true);
        }
        sqlx::raw_sql("-- postgres.pooler.commit\n commit").execute(&mut *other).await?;
        if moves(conn, &marked).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn moves(conn: &mut PgConnection, marked: &Seen) -> Result<bool, sqlx::Error> {
    for _ in 0..LOOKS {
        if look(conn).await? != *marked {
            return Ok(true);
        }
    }
    Ok(false)
}

/// By the simple protocol: what is prepared in one session may be executed in another, which is the very question.
async fn look(conn: &mut PgConnection) -> Result<Seen, sqlx::Error> {
    let row = sqlx::raw_sql(
        "-- postgres.pooler.look
         select pg_catalog.pg_backend_pid()::pg_catalog.text as process,
           coalesce(pg_catalog.current_setting('cdc_export.session', true), '') as mark",
    )
    .fetch_one(conn)
    .await?;
    Ok(Seen { process: row.try_get("process")?, mark: row.try_get("mark")? })
}
