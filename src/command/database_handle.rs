//! The database that a command works on: one that was given, or the private one, joined or run; and the modules, wired over it.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cdc_export::config::Config;
use cdc_export::embedded;
use cdc_export::postgres::{self, Database};
use cdc_export::service::{self, Service, Stores};
use cdc_export::sink::Folder;
use cdc_export::source::{capture, snapshot::Source};
use cdc_export::store::Store;
use cdc_export::telemetry;
use cdc_export::worker::{self, Worker};
use tokio_util::sync::CancellationToken;

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

/// A migrated database, and the private server under it if this process runs that.
pub(super) struct DatabaseHandle {
    pub(super) database: Database,
    server: Option<embedded::Server>,
}

impl From<Database> for DatabaseHandle {
    /// One that others run.
    fn from(database: Database) -> DatabaseHandle {
        DatabaseHandle { database, server: None }
    }
}

impl DatabaseHandle {
    /// `DATABASE_URL`, else the private server that another process runs, else one that this process runs while it lasts.
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

/// Brings the schema up to date, with what the triggers call, and the triggers of the demo's own table.
pub(super) async fn prepare(database: &Database) -> anyhow::Result<()> {
    postgres::migrate(database).await?;
    let pool = database.pool(1);
    capture::renew(&pool).await?;
    Ok(capture::restore(&pool).await?)
}

pub(super) async fn join_or_start(settings: &embedded::Settings) -> anyhow::Result<DatabaseHandle> {
    // A process that just starts its server has the folder, but no server to join yet.
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

/// Connections that so many exports at once may have: a leader, a reader and a heartbeat each, the further readers that they
/// share, what claims and settles them, and one that listens.
pub(super) fn connections_of_exports(config: &Config, workers: u32) -> u32 {
    3 * workers + (config.readers - 1) + control_connections(workers) + 1
}

/// Connections of the API: those that are set, one that asks whether Postgres is there, and those that count for `/consumers`.
pub(super) fn connections_of_api(config: &Config) -> u32 {
    config.api_connections + 1 + COUNTING_CONNECTIONS
}

pub(super) const COUNTING_CONNECTIONS: u32 = 2;

/// To claim and settle a job at a time for each worker, and to keep up.
fn control_connections(workers: u32) -> u32 {
    workers + 1
}

/// What exports run on.
pub(super) struct Wired {
    pub(super) worker: Worker,
    pub(super) service: Service,
}

/// Wires service and worker over one database, for so many exports at once; 0: for the service alone. Makes the output folder.
pub(super) fn wire(config: &Config, database: &Database, workers: u32, stopping: &CancellationToken) -> Wired {
    let folder = Arc::new(Folder::new(config.output_dir.clone()).with_file_mode(config.output_mode));
    if let Err(error) = folder.prepare() {
        // The service is of use without it: jobs fail with the reason until somebody mends the folder.
        let error = telemetry::chain(&error);
        tracing::error!(event = "output_unusable", folder = %config.output_dir.display(), error);
    }
    let source = |pool| Source::new(database.options().clone(), pool, config.readers);
    let control = database.pool(control_connections(workers));
    let settings = worker::Settings { workers, ..config.worker.clone() };
    let (its_folder, catalog) = (Arc::clone(&folder), Arc::clone(&config.catalog));
    let store = Store::new(control.clone());
    let worker = Worker::new(settings, store.clone(), source(control.clone()), its_folder, Arc::clone(&catalog));
    let callers = |connections, patience| database.pool_for_callers(connections, patience);
    let stores = Stores {
        api: store.over(callers(config.api_connections, service::CALL_TIMEOUT)),
        probe: Store::new(callers(1, service::CALL_TIMEOUT)),
        control: Some(Store::new(control.clone())).filter(|_| workers > 0),
    };
    let counting = callers(COUNTING_CONNECTIONS, service::COUNTING_TIMEOUT);
    let settings = service::Settings { folder, catalog, terms: config.terms };
    let service = Service::new(settings, stores, source(counting), stopping.clone());
    Wired { worker, service }
}
