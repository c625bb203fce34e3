//! Opens the database that a command uses: the one in `DATABASE_URL`, or that of the private server.
//!
//! A command joins a private server that is running, or starts the server itself. Only some commands create a missing
//! server or missing tables: [`CreateMissing`] says which.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::Config;
use crate::postgres::{self, Database, RequiredGrants};
use anyhow::{Context, bail};
use cdc_capture::capture::Triggers;
use failpoint::failpoint;
use pg_session::wait;
use private_postgres::Location;

use crate::command::BadUsage;
use crate::command::catalog::expand;

/// The parts that a command creates if they are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CreateMissing {
    /// Nothing. The command needs the service's tables.
    Nothing,
    /// Nothing. The command reads other tables only, so it also works without the service's tables.
    NothingWithPreview,
    /// The service's tables, on an existing server.
    Tables,
    /// The service's tables, and a private server if `DATABASE_URL` is unset.
    Server,
}

/// The end of the error of a missing database, for a command that has `--server`.
pub(super) const OR_SERVER: &str = ", or give --server";

/// Runs a short command on a migrated database.
pub(super) async fn with_database(
    config: &Config,
    create: CreateMissing,
    command: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let handle = DatabaseHandle::open(config, create, "").await?;
    let done = command(&handle.database).await;
    handle.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

/// Runs `track`, which creates the service's tables. Runs `check` first, on the database as it is, so that a failed
/// check creates nothing.
pub(super) async fn with_tables_after_check(
    check: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
    config: &Config,
    command: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let handle = DatabaseHandle::reach(config, CreateMissing::Tables, "").await?;
    let done = async {
        let database = &handle.database;
        match postgres::require_migrated(database).await {
            Ok(()) => {
                expand(config, database).await?;
                check(database).await?;
            }
            Err(postgres::Error::NotMigrated) => {
                // Without the right to create a schema, there is no preview. The migration then names the missing
                // grant.
                if let Ok(preview) = postgres::preview_of(database).await {
                    expand(config, &preview).await?;
                    check(&preview).await?;
                    // The migration would wait for the preview's transaction.
                    preview.pool().close().await;
                }
            }
            // The migration reports the same error, or repairs it.
            Err(_) => {}
        }
        prepare_for(RequiredGrants::Track, config, database).await?;
        expand(config, database).await?;
        command(database).await
    };
    let done = done.await;
    handle.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

/// A database, and its private server if this process runs that.
pub(super) struct DatabaseHandle {
    pub(super) database: Database,
    server: Option<private_postgres::Server>,
}

impl From<Database> for DatabaseHandle {
    fn from(database: Database) -> DatabaseHandle {
        DatabaseHandle { database, server: None }
    }
}

impl DatabaseHandle {
    /// Opens the database in `DATABASE_URL`. If that is unset, joins the private server of another process, or starts
    /// one. Then migrates the database, or requires that it is migrated.
    pub(super) async fn open(
        config: &Config,
        create: CreateMissing,
        or_server: &str,
    ) -> anyhow::Result<DatabaseHandle> {
        let mut handle = DatabaseHandle::reach(config, create, or_server).await?;
        match handle.prepare(config, create).await {
            Ok(()) => Ok(handle),
            Err(error) => {
                handle.close().await;
                Err(error)
            }
        }
    }

    /// Migrates the database, or requires that it is migrated. Then expands the patterns of the catalog.
    async fn prepare(&mut self, config: &Config, create: CreateMissing) -> anyhow::Result<()> {
        match create {
            CreateMissing::NothingWithPreview => {
                let found = match postgres::require_migrated(&self.database).await {
                    Err(postgres::Error::NotMigrated) => postgres::preview_of(&self.database).await,
                    found => found.map(|()| self.database.clone()),
                };
                self.database = found.with_context(|| self.database.to_string())?;
            }
            CreateMissing::Nothing => {
                postgres::require_migrated(&self.database).await.with_context(|| self.database.to_string())?;
            }
            CreateMissing::Tables | CreateMissing::Server => prepare(config, &self.database).await?,
        }
        expand(config, &self.database).await
    }

    async fn reach(config: &Config, create: CreateMissing, or_server: &str) -> anyhow::Result<DatabaseHandle> {
        if let Some(database) = &config.database {
            return Ok(database.clone().into());
        }
        if create != CreateMissing::Server {
            let Location { data_dir, has_server } = private_postgres::locate(&config.embedded)?;
            if !has_server {
                return Err(no_database(&data_dir, or_server).into());
            }
            // If DATABASE_URL was lost by accident, the user would mistake this database for another one.
            eprintln!("cdc-export: DATABASE_URL is unset: using the private Postgres in {}", data_dir.display());
        }
        join_or_start(&config.embedded).await
    }

    pub(super) async fn close(self) {
        if let Some(server) = self.server {
            server.stop().await;
        }
    }
}

/// Returns the error of a missing database. An answer from a new, empty database would hide that a variable was lost.
fn no_database(data_dir: &Path, or_server: &str) -> BadUsage {
    BadUsage(format!(
        "DATABASE_URL is unset, and there is no private Postgres in {}: set DATABASE_URL, or DATA_DIR to the folder of one{or_server}",
        data_dir.display()
    ))
}

/// Updates the service's schema, the functions that the triggers call, and the triggers on the demo table.
pub(super) async fn prepare(config: &Config, database: &Database) -> anyhow::Result<()> {
    prepare_for(RequiredGrants::Serve, config, database).await
}

async fn prepare_for(purpose: RequiredGrants, config: &Config, database: &Database) -> anyhow::Result<()> {
    postgres::migrate(database, &config.catalog.get(), purpose).await.with_context(|| database.to_string())?;
    let pool = database.pool();
    Triggers(&pool).renew().await?;
    Ok(Triggers(&pool).restore().await?)
}

fn ignores_installed() -> bool {
    failpoint!("postgres.installed", true);
    false
}

pub(super) async fn join_or_start(settings: &private_postgres::Settings) -> anyhow::Result<DatabaseHandle> {
    // Another process may have locked the data folder while its server is still starting.
    for _ in 0..30 {
        if let Some(socket_folder) = private_postgres::join(settings)? {
            return Ok(Database::private(&socket_folder).into());
        }
        match start(settings).await {
            Err(private_postgres::Error::AlreadySupervised(_)) => tokio::time::sleep(Duration::from_secs(1)).await,
            started => return Ok(started?),
        }
    }
    bail!("the private Postgres of another process is still not ready")
}

/// Starts the private server. Fails if another process already runs it.
pub(super) async fn start(settings: &private_postgres::Settings) -> Result<DatabaseHandle, private_postgres::Error> {
    let settings = private_postgres::Settings { ignores_installed: ignores_installed(), ..settings.clone() };
    let wait = "the private Postgres is not ready yet: postgres.log in DATA_DIR says what it does, such as a recovery";
    let server = wait::named(wait, private_postgres::Server::start(&settings)).await?;
    Ok(DatabaseHandle { database: Database::private(server.socket_folder()), server: Some(server) })
}
