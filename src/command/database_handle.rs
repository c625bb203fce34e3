//! The database that a command works on: that of `DATABASE_URL`, or the private server's, which the command joins or
//! runs. What is not there is made only by the commands that are for it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::Config;
use crate::failpoint;
use crate::postgres::{self, Database, Purpose};
use crate::source::capture::{functions, tracking};
use anyhow::Context;
use private_postgres::Location;

use crate::command::BadUsage;

/// What a command makes where it isn't there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Makes {
    /// Nothing: the command looks, or uses what others have made.
    Nothing,
    /// Nothing, and it needs nothing: the command looks at tables alone.
    NothingAndNeedsNone,
    /// The service's tables, on a server that is there.
    Tables,
    /// The service's tables, and a private server where `DATABASE_URL` is unset.
    Server,
}

/// Where a command finds the service's tables, if not in the database of `DATABASE_URL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OtherWays {
    /// In a private server.
    DataDir,
    /// There too, or behind the API of a service.
    DataDirOrServer,
}

/// Runs a short command on a migrated database.
pub(super) async fn with_database(
    config: &Config,
    makes: Makes,
    command: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let handle = DatabaseHandle::open(config, makes, OtherWays::DataDir).await?;
    let done = command(&handle.database).await;
    handle.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

/// Runs `track`, which makes the service's tables, once a look at the database as it is has found nothing wrong.
pub(super) async fn with_tables_after(
    look: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
    config: &Config,
    command: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let handle = DatabaseHandle::reach(config, Makes::Tables, OtherWays::DataDir).await?;
    let done = async {
        let database = &handle.database;
        match postgres::require_migrated(database).await {
            Ok(()) => look(database).await?,
            Err(postgres::Error::NotMigrated) => {
                // A role that may not make a schema has no preview: the migration says what to grant.
                if let Ok(preview) = postgres::preview_of(database).await {
                    look(&preview).await?;
                }
            }
            // The migration says it, or mends it.
            Err(_) => {}
        }
        prepare_for(Purpose::Track, config, database).await?;
        command(database).await
    };
    let done = done.await;
    handle.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

/// A database, and the private server under it if this process runs that.
pub(super) struct DatabaseHandle {
    pub(super) database: Database,
    server: Option<private_postgres::Server>,
}

impl From<Database> for DatabaseHandle {
    /// A database that this process doesn't run.
    fn from(database: Database) -> DatabaseHandle {
        DatabaseHandle { database, server: None }
    }
}

impl DatabaseHandle {
    /// Opens `DATABASE_URL`'s database, else that of the private server that another process runs, else that of one
    /// that this process starts. Migrates it, or requires that it is migrated.
    pub(super) async fn open(config: &Config, makes: Makes, other: OtherWays) -> anyhow::Result<DatabaseHandle> {
        let handle = DatabaseHandle::reach(config, makes, other).await?;
        let prepared = match makes {
            Makes::NothingAndNeedsNone => return handle.or_preview().await,
            Makes::Nothing => {
                postgres::require_migrated(&handle.database).await.with_context(|| handle.database.to_string())
            }
            Makes::Tables | Makes::Server => prepare(config, &handle.database).await,
        };
        if let Err(error) = prepared {
            handle.close().await;
            return Err(error);
        }
        Ok(handle)
    }

    async fn reach(config: &Config, makes: Makes, other: OtherWays) -> anyhow::Result<DatabaseHandle> {
        if let Some(database) = &config.database {
            return Ok(database.clone().into());
        }
        if makes != Makes::Server {
            let Location { data_dir, has_server } = private_postgres::locate(&config.embedded)?;
            if !has_server {
                return Err(nothing_there(&data_dir, other).into());
            }
            // Whoever lost the variable would take its database for the one that DATABASE_URL names elsewhere.
            eprintln!("cdc-export: DATABASE_URL is unset: using the private Postgres in {}", data_dir.display());
        }
        join_or_start(&config.embedded).await
    }

    /// The database as it is if it is migrated, else as it would be.
    async fn or_preview(mut self) -> anyhow::Result<DatabaseHandle> {
        let found = match postgres::require_migrated(&self.database).await {
            Err(postgres::Error::NotMigrated) => postgres::preview_of(&self.database).await,
            found => found.map(|()| self.database.clone()),
        };
        match found.with_context(|| self.database.to_string()) {
            Ok(database) => {
                self.database = database;
                Ok(self)
            }
            Err(error) => {
                self.close().await;
                Err(error)
            }
        }
    }

    pub(super) async fn close(self) {
        if let Some(server) = self.server {
            server.stop().await;
        }
    }
}

/// Without a database, an answer would be that of an empty one: what a lost variable would bring about unseen.
fn nothing_there(data_dir: &Path, other: OtherWays) -> BadUsage {
    let server = match other {
        OtherWays::DataDir => "",
        OtherWays::DataDirOrServer => ", or give --server",
    };
    BadUsage(format!(
        "DATABASE_URL is unset, and there is no private Postgres in {}: set DATABASE_URL, or DATA_DIR to the folder of one{server}",
        data_dir.display()
    ))
}

/// Brings the schema up to date, the functions that the triggers call, and the triggers on the demo's table.
pub(super) async fn prepare(config: &Config, database: &Database) -> anyhow::Result<()> {
    prepare_for(Purpose::Serve, config, database).await
}

async fn prepare_for(purpose: Purpose, config: &Config, database: &Database) -> anyhow::Result<()> {
    postgres::migrate(database, &config.catalog, purpose).await.with_context(|| database.to_string())?;
    let pool = database.pool(1);
    functions::renew(&pool).await?;
    Ok(tracking::restore(&pool).await?)
}

/// Returns true if a test wants no installed Postgres to be found.
fn ignores_installed() -> bool {
    failpoint!("postgres.installed", true);
    false
}

pub(super) async fn join_or_start(settings: &private_postgres::Settings) -> anyhow::Result<DatabaseHandle> {
    let settings = &private_postgres::Settings { ignores_installed: ignores_installed(), ..settings.clone() };
    // Another process may have locked the data folder, and its server not be ready to be joined yet.
    for _ in 0..30 {
        if let Some(endpoint) = private_postgres::join(settings)? {
            return Ok(Database::from(&endpoint).into());
        }
        match private_postgres::Server::start(settings).await {
            Ok(server) => {
                return Ok(DatabaseHandle { database: server.endpoint().into(), server: Some(server) });
            }
            Err(private_postgres::Error::AlreadySupervised(_)) => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(error) => return Err(error.into()),
        }
    }
    private_postgres::join(settings)?
        .map(|endpoint| Database::from(&endpoint).into())
        .context("the private Postgres of another process doesn't get ready")
}
