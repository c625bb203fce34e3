//! The control plane in Postgres: jobs, their queue, watermarks, and the demo's soft delete.
//!
//! The only room that writes the tables the service owns. A statement is one named function here; what is transient, and what
//! an HTTP client is told, is decided elsewhere.

pub mod jobs;
pub mod queue;
pub mod users;
pub mod watermarks;

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;

/// The channel that says "look again": a job is new, or one was asked to stop. Only a hint; whoever misses it finds out by
/// polling.
const CHANNEL: &str = "cdc_export";

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres can't be reached, is starting or stopping, or has no free connection.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// Postgres refused the statement.
    #[error("the database refused a statement")]
    Sql(#[source] sqlx::Error),
    /// A row holds what this version of the service doesn't know.
    #[error("the database holds an unknown value")]
    Unknown(#[from] crate::job::UnknownWord),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Error {
        let unavailable = match &error {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Protocol(_) => true,
            // Connection exceptions, insufficient resources, operator intervention (PostgreSQL documentation, appendix A).
            sqlx::Error::Database(e) => {
                e.code().is_some_and(|code| ["08", "53", "57"].iter().any(|class| code.starts_with(class)))
            }
            _ => false,
        };
        if unavailable { Error::Unavailable(error) } else { Error::Sql(error) }
    }
}

/// The control plane's statements over one pool of connections.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
}

impl Store {
    /// Statements over this pool. Its acquire timeout bounds how long any of them waits for a connection.
    pub fn new(pool: PgPool) -> Store {
        Store { pool }
    }

    /// Whether Postgres answers within 2 seconds.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn ping(&self) -> Result<(), Error> {
        let ping = sqlx::query("-- store.ping\n select 1").execute(&self.pool);
        match tokio::time::timeout(Duration::from_secs(2), ping).await {
            Ok(done) => Ok(done.map(drop)?),
            Err(_) => Err(Error::Unavailable(sqlx::Error::PoolTimedOut)),
        }
    }

    /// Listens for hints on a connection of its own, which comes back by itself after a loss.
    ///
    /// # Errors
    /// If Postgres can't be reached.
    pub async fn listen(&self) -> Result<Hints, Error> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.ignore_pool_close_event(true);
        listener.listen(CHANNEL).await?;
        Ok(Hints { listener })
    }
}

/// Hints that it is worth looking again.
#[derive(Debug)]
pub struct Hints {
    listener: PgListener,
}

impl Hints {
    /// Waits for the next one. A lost connection is a hint too: something may have been missed.
    ///
    /// # Errors
    /// If the connection is lost and can't be made again.
    pub async fn next(&mut self) -> Result<(), Error> {
        self.listener.try_recv().await?;
        Ok(())
    }
}
