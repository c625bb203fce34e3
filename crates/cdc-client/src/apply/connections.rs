//! The connections to a target database.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;

use crate::apply::statement::run;
use crate::apply::{COMMIT, During, Error, position};
use crate::observer::Observer;
use cdc_manifest::ConsumerId;

/// The connections to a target database, which any number of [`Target`](crate::apply::Target)s share. Each target takes
/// one while it works. One more looks at the sessions of the others.
pub struct TargetConnections {
    options: PgConnectOptions,
    /// The time within which a connection must be there, and a short call must be answered.
    limit: Duration,
    /// The idle connections, without a transaction.
    idle: Mutex<Vec<PgConnection>>,
    /// The connection that looks at sessions. `None` until it is needed.
    looking: tokio::sync::Mutex<Option<PgConnection>>,
    pub(super) observer: Arc<dyn Observer>,
}

impl TargetConnections {
    pub fn new(options: PgConnectOptions, limit: Duration, observer: Arc<dyn Observer>) -> TargetConnections {
        TargetConnections { options, limit, idle: Mutex::default(), looking: tokio::sync::Mutex::default(), observer }
    }

    /// Lists the datasets of a consumer that have tables in the database, in the schema if one is named.
    pub async fn datasets(&self, consumer: &ConsumerId, schema: Option<&str>) -> Result<BTreeSet<String>, Error> {
        let found = self.transaction(async |mut tx| {
            let found = position::datasets(&mut tx, consumer, schema).await?;
            tx.commit().await.during(COMMIT)?;
            Ok(found)
        });
        found.await.map_err(|failure| failure.error)
    }

    /// Takes an idle connection that answers and can write, or a new one.
    pub(super) async fn take(&self) -> Result<PgConnection, Error> {
        let taken = || self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(mut conn) = taken() {
            if self.answered(pg_session::require_writable(&mut conn)).await.is_ok() {
                return Ok(conn);
            }
        }
        // Limits the time for which a statement waits for a lock, unless the role has a limit of its own. Also limits
        // the time for which a process that was stopped holds its locks.
        let set = "select set_config('lock_timeout', '30s', false) where current_setting('lock_timeout') = '0';
                   set idle_in_transaction_session_timeout = '10min'";
        let connecting = async {
            let mut conn = pg_session::connect_target(&self.options).await?;
            run(&mut conn, "connections.limit", set).await?;
            Ok(conn)
        };
        self.answered(connecting).await.during("the connection")
    }

    /// Waits for a call that the target can answer at once.
    pub(super) async fn answered<T>(
        &self,
        call: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        tokio::time::timeout(self.limit, call).await.unwrap_or_else(|_| {
            let why = format!("no answer within {} seconds", self.limit.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, why).into())
        })
    }

    /// Keeps a connection without a transaction for the next target.
    pub(super) fn keep(&self, conn: PgConnection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
    }

    /// Makes a short call over the connection that looks at sessions.
    pub(super) async fn looking<T>(
        &self,
        call: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let called = async {
            let mut looking = self.looking.lock().await;
            let mut conn = match looking.take() {
                Some(conn) => conn,
                None => pg_session::connect_target(&self.options).await?,
            };
            let done = call(&mut conn).await?;
            *looking = Some(conn);
            Ok(done)
        };
        self.answered(called).await
    }
}
