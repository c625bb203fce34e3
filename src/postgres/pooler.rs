//! Checks that each connection is a session of the server. A pooler in transaction mode lends a session for one
//! transaction only: whatever the service sets, locks, prepares or listens to would belong to another client a moment
//! later.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use uuid::Uuid;

use crate::connection::failure::sqlstate;
use crate::postgres::{Database, Error, connect};

/// Rounds of the check: in one alone, the pooler may happen to give us the same session throughout.
const ROUNDS: u32 = 3;
/// Checks in a row after which a pooler that lends its sessions round robin has come to another one.
const CHECKS: u32 = 3;
/// How long the check may take: a pooler without a session for the second connection lets it wait.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// What tells sessions apart: the server's process, and a mark that was set in the session.
#[derive(PartialEq, Eq)]
struct SessionIdentity {
    process: String,
    mark: String,
}

/// Checks that each connection is a session of its own, and stays that one.
///
/// # Errors
/// If they aren't, or the server fails.
pub(crate) async fn require_sessions(conn: &mut PgConnection, database: &Database) -> Result<(), Error> {
    let mut other = connect(database).await?;
    let shared = tokio::time::timeout(SESSION_TIMEOUT, are_shared(conn, &mut other)).await;
    if shared.map_err(|_| Error::OneSession)?? {
        return Err(Error::Pooled);
    }
    Ok(other.close().await?)
}

async fn are_shared(conn: &mut PgConnection, other: &mut PgConnection) -> Result<bool, sqlx::Error> {
    for _ in 0..ROUNDS {
        let mark = Uuid::new_v4().simple().to_string();
        let set =
            format!("-- postgres.pooler.mark\n select pg_catalog.set_config('cdc_export.session', '{mark}', false)");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut *conn).await?;
        let marked = identify(conn).await?;
        if marked.mark != mark || identify(other).await? == marked {
            return Ok(true);
        }
        // A transaction keeps the other connection's session with it. If that was our session, ours has to move.
        let begun = sqlx::raw_sql("-- postgres.pooler.begin\n begin").execute(&mut *other).await;
        // What a pooler in statement mode answers: protocol_violation.
        if begun.is_err_and(|error| sqlstate(&error) == "08P01") {
            return Ok(true);
        }
        if identify(other).await? == marked || moves(conn, &marked).await? {
            return Ok(true);
        }
        sqlx::raw_sql("-- postgres.pooler.commit\n commit").execute(&mut *other).await?;
        if moves(conn, &marked).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn moves(conn: &mut PgConnection, marked: &SessionIdentity) -> Result<bool, sqlx::Error> {
    for _ in 0..CHECKS {
        if identify(conn).await? != *marked {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads what tells the session apart. By the simple protocol: a prepared statement could be executed in another
/// session.
async fn identify(conn: &mut PgConnection) -> Result<SessionIdentity, sqlx::Error> {
    let row = sqlx::raw_sql(
        "-- postgres.pooler.identify
         select pg_catalog.pg_backend_pid()::pg_catalog.text as process,
           coalesce(pg_catalog.current_setting('cdc_export.session', true), '') as mark",
    )
    .fetch_one(conn)
    .await?;
    Ok(SessionIdentity { process: row.try_get("process")?, mark: row.try_get("mark")? })
}
