//! The connections to a target database.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

use crate::apply::statement::run;
use crate::apply::{BEGIN, COMMIT, During, Error, position};
use cdc_manifest::ConsumerId;

/// The connections to a target database, which any number of [`Target`](crate::apply::Target)s share. Each target takes
/// one while it works. One more reads which sessions hold a lock.
pub struct TargetConnections {
    options: PgConnectOptions,
    /// The time within which a connection must be there.
    limit: Duration,
    /// The idle connections, without a transaction.
    idle: Mutex<Vec<PgConnection>>,
    /// The connection that reads which sessions hold a lock. `None` until it is needed.
    observer: tokio::sync::Mutex<Option<PgConnection>>,
}

impl TargetConnections {
    pub fn new(options: PgConnectOptions, limit: Duration) -> TargetConnections {
        TargetConnections { options, limit, idle: Mutex::default(), observer: tokio::sync::Mutex::default() }
    }

    /// Lists the datasets of a consumer that have tables in the database.
    pub async fn datasets(&self, consumer: &ConsumerId) -> Result<Vec<String>, Error> {
        let mut conn = self.take().await?;
        let mut tx = conn.begin().await.during(BEGIN)?;
        let found = position::datasets(&mut tx, consumer).await?;
        tx.commit().await.during(COMMIT)?;
        self.keep(conn);
        Ok(found)
    }

    pub(super) async fn take(&self) -> Result<PgConnection, Error> {
        while let Some(mut conn) = self.take_idle() {
            if conn.ping().await.is_ok() {
                return Ok(conn);
            }
        }
        let mut conn = self.connect().await.during("the connection")?;
        // Limits the time for which a statement waits for a lock, unless the role has a limit of its own. Also limits
        // the time for which a process that was stopped holds its locks.
        let set = "select set_config('lock_timeout', '30s', false) where current_setting('lock_timeout') = '0';
                   set idle_in_transaction_session_timeout = '10min'";
        run(&mut conn, "lock.limit", set).await.during("the connection")?;
        Ok(conn)
    }

    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let connecting = tokio::time::timeout(self.limit, pg_session::connect_target(&self.options));
        connecting.await.unwrap_or_else(|_| {
            let why = format!("no answer within {} seconds", self.limit.as_secs());
            Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, why)))
        })
    }

    fn take_idle(&self) -> Option<PgConnection> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps a connection without a transaction for the next target.
    pub(super) fn keep(&self, conn: PgConnection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
    }

    /// Reads the sessions that hold a lock for which a process waits. Returns `None` if it waits for none.
    pub(super) async fn holders(&self, process: i32) -> Result<Option<String>, sqlx::Error> {
        let mut observer = self.observer.lock().await;
        let mut conn = match observer.take() {
            Some(conn) => conn,
            None => self.connect().await?,
        };
        let found = sqlx::query_scalar(
            "-- apply.lock.holders
             select string_agg(case when blocking.pid = 0 then 'a prepared transaction (pg_prepared_xacts)'
               else format('process %s of role %s (%s)', blocking.pid, a.usename, a.application_name) end, ', ')
             from unnest(pg_blocking_pids($1)) as blocking (pid)
             left join pg_stat_activity a on a.pid = blocking.pid",
        );
        let found = found.bind(process).fetch_one(&mut conn).await?;
        *observer = Some(conn);
        Ok(found)
    }
}
