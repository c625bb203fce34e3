//! The database that a command works on: that of `DATABASE_URL`, or the private server's, which the command joins or runs.

use std::process::ExitCode;
use std::time::Duration;

use crate::config::Config;
use crate::embedded;
use crate::postgres::{self, Database};
use crate::source::capture::{functions, tracking};
use anyhow::Context;

/// Runs a short command on a migrated database.
pub(super) async fn with_database(
    config: &Config,
    command: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let handle = DatabaseHandle::open(config).await?;
    let done = command(&handle.database).await;
    handle.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

/// A database, and the private server under it if this process runs that.
pub(super) struct DatabaseHandle {
    pub(super) database: Database,
    server: Option<embedded::Server>,
}

impl From<Database> for DatabaseHandle {
    /// A database that this process doesn't run.
    fn from(database: Database) -> DatabaseHandle {
        DatabaseHandle { database, server: None }
    }
}

impl DatabaseHandle {
    /// Opens and migrates `DATABASE_URL`'s database, else that of the private server that another process runs, else that of one
    /// that this process starts.
    pub(super) async fn open(config: &Config) -> anyhow::Result<DatabaseHandle> {
        let handle = match &config.database {
            Some(database) => database.clone().into(),
            None => join_or_start(&config.embedded).await?,
        };
        if let Err(error) = prepare(&handle.database).await {
            handle.close().await;
            return Err(error);
        }
        Ok(handle)
    }

    pub(super) async fn close(self) {
        if let Some(server) = self.server {
            server.stop().await;
        }
    }
}

/// Brings the schema up to date, the functions that the triggers call, and the triggers on the demo's table.
pub(super) async fn prepare(database: &Database) -> anyhow::Result<()> {
    postgres::migrate(database).await?;
    let pool = database.pool(1);
    functions::renew(&pool).await?;
    Ok(tracking::restore(&pool).await?)
}

pub(super) async fn join_or_start(settings: &embedded::Settings) -> anyhow::Result<DatabaseHandle> {
    // Another process may have locked the data folder, and its server not be ready to be joined yet.
    for _ in 0..30 {
        if let Some(endpoint) = embedded::join(settings)? {
            return Ok(Database::from(&endpoint).into());
        }
        match embedded::Server::start(settings).await {
            Ok(server) => {
                return Ok(DatabaseHandle { database: server.endpoint().into(), server: Some(server) });
            }
            Err(embedded::Error::AlreadySupervised(_)) => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(error) => return Err(error.into()),
        }
    }
    embedded::join(settings)?
        .map(|endpoint| Database::from(&endpoint).into())
        .context("the private Postgres of another process doesn't get ready")
}
