//! Checks that each connection has its own session on the server.
//!
//! A pooler in transaction mode assigns a session for one transaction only. Settings, locks, prepared statements and
//! LISTEN would then belong to another client.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use uuid::Uuid;

use crate::postgres::{Database, Error, connect};
use pg_session::failure::sqlstate;

/// The number of rounds of the check. In a single round, the pooler may assign the same session by chance.
const ROUNDS: u32 = 3;
/// The number of consecutive checks after which a round-robin pooler has assigned another session.
const CHECKS: u32 = 3;
/// The timeout of the check. A pooler without a session for the second connection makes it wait.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// The identity of a session: the process id of the server, and a mark that was set in the session.
#[derive(PartialEq, Eq)]
struct SessionIdentity {
    process: String,
    mark: String,
}

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
        // A transaction binds the other connection to its session. If that was our session, ours has to change.
        let begun = sqlx::raw_sql("-- postgres.pooler.begin\n begin").execute(&mut *other).await;
        // A pooler in statement mode answers with protocol_violation.
        if begun.is_err_and(|error| sqlstate(&error) == "08P01") {
            return Ok(true);
        }
        if identify(other).await? == marked || changes_session(conn, &marked).await? {
            return Ok(true);
        }
        sqlx::raw_sql("-- postgres.pooler.commit\n commit").execute(&mut *other).await?;
        if changes_session(conn, &marked).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn changes_session(conn: &mut PgConnection, marked: &SessionIdentity) -> Result<bool, sqlx::Error> {
    for _ in 0..CHECKS {
        if identify(conn).await? != *marked {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads the identity of the session. Uses the simple protocol, because a prepared statement could be executed in
/// another session.
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
