//! The check whether the service can use Postgres, over a connection of its own.
//!
//! The driver's pool is of no use here: it tries to connect until its time is over, and then reports the time instead
//! of the reason.

use std::time::Instant;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::sync::Mutex;

use crate::store::{CLAIMS_FAIL_AFTER, Error};
use pg_session::pool::require_usable;
use pg_session::{session_name, set_up};

/// The processes that run exports on this database.
#[derive(Clone, Copy, Debug, Default)]
pub struct OtherProcesses {
    /// The number of those, other than this one, whose claims fail.
    pub failing: i64,
    /// True if none looks for jobs: none is there, or each has hung for a minute.
    pub are_none: bool,
    /// True if the files of a committed export have no names after a minute.
    pub have_unpublished: bool,
}

#[derive(Debug)]
pub struct Probe {
    options: PgConnectOptions,
    /// The connection of the last check, if it succeeded. A check that is given up closes its connection.
    conn: Mutex<Option<PgConnection>>,
    begun: Instant,
}

impl Probe {
    pub fn new(options: PgConnectOptions) -> Probe {
        Probe { options, conn: Mutex::default(), begun: Instant::now() }
    }

    /// Checks that Postgres answers and can be written, and that the role has all rights on the service's tables.
    /// Returns what is wrong with the processes that run exports.
    ///
    /// # Errors
    /// [`Error::Denied`] if a right is missing. [`Error::StandbyMissing`] if commits wait for a standby: no standby at
    /// all is connected, or a session of ours has waited for five seconds.
    pub async fn other_processes(&self) -> Result<OtherProcesses, Error> {
        // Boxed, because an unoptimized build reserves room for this future several times in each caller.
        Box::pin(self.check()).await
    }

    async fn check(&self) -> Result<OtherProcesses, Error> {
        let mut kept = self.conn.lock().await;
        let mut conn = match kept.take() {
            Some(conn) => conn,
            None => Box::pin(self.connect()).await?,
        };
        if require_usable(&mut conn).await.is_err() {
            conn = Box::pin(self.connect()).await?;
        }
        let statement = sqlx::query_as(include_str!("other_processes.sql")).bind(session_name::of_failing());
        let (failing, are_none, have_unpublished, awaits_standby, missing_rights): (_, _, _, bool, Option<String>) =
            statement.fetch_one(&mut conn).await?;
        *kept = Some(conn);
        if let Some(missing) = missing_rights {
            return Err(Error::Denied(missing));
        }
        if awaits_standby {
            return Err(Error::StandbyMissing);
        }
        // A process that has just started may not have looked yet.
        let limit = failpoint::time("store.claims_fail", CLAIMS_FAIL_AFTER);
        Ok(OtherProcesses { failing, are_none: are_none && self.begun.elapsed() >= limit, have_unpublished })
    }

    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let mut conn = PgConnection::connect_with(&self.options).await?;
        // The server ends a check that waits for a lock before its caller gives it up.
        set_up(&mut conn, "set statement_timeout = '1500ms'").await?;
        Ok(conn)
    }
}
