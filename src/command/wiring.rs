//! Wires service and worker over one database, and counts the connections that they may come to have.

use std::sync::Arc;

use crate::config::Config;
use crate::maintenance::Maintenance;
use crate::postgres::Database;
use crate::service::{self, Service, Stores};
use crate::sink::{Destination, Folder};
use crate::source::Source;
use crate::store::Store;
use crate::telemetry;
use crate::worker::{self, Worker};
use tokio_util::sync::CancellationToken;

/// The connections of so many exports at once: a leader, a reader and a heartbeat each, the further readers that they share,
/// those that claim and settle them, and one that listens.
pub(super) fn connections_of_exports(config: &Config, workers: u32) -> u32 {
    3 * workers + (config.readers - 1) + control_connections(workers) + 1
}

/// The connections of the API: those of API_CONNECTIONS, one that pings Postgres, and those that count rows for `/consumers`.
pub(super) fn connections_of_api(config: &Config) -> u32 {
    config.api_connections + 1 + COUNTING_CONNECTIONS
}

pub(super) const COUNTING_CONNECTIONS: u32 = 2;

/// One to claim and settle for each worker, and one for maintenance.
fn control_connections(workers: u32) -> u32 {
    workers + 1
}

/// The service and the exports of one process.
pub(super) struct Wired {
    pub(super) exports: Exports,
    pub(super) service: Service,
}

/// What a process does that runs exports.
pub(super) struct Exports {
    worker: Worker,
    maintenance: Maintenance,
}

impl Exports {
    /// Says that the jobs of this folder have a worker.
    pub(super) async fn announce(&self) {
        self.maintenance.announce().await;
    }

    /// Works until `shutdown`, then gives running jobs back and returns.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        tokio::join!(self.worker.run(shutdown.clone()), self.maintenance.run(shutdown));
    }
}

/// Wires the modules, for so many exports at once; 0: for the service alone. Makes the output folder.
pub(super) fn wire(config: &Config, database: &Database, workers: u32, stopping: &CancellationToken) -> Wired {
    let folder = Folder::new(config.output_dir.clone()).with_file_mode(config.output_mode);
    if let Err(error) = folder.prepare() {
        // The service starts without the folder: jobs fail with the reason until the operator mends it.
        let error = telemetry::chain(&error);
        tracing::error!(event = "output_unusable", folder = %config.output_dir.display(), error);
    }
    let destination = Destination::from(folder);
    let source = |pool| Source::new(database.options().clone(), pool, config.readers);
    let control = database.pool(control_connections(workers));
    let settings = worker::Settings { workers, ..config.worker.clone() };
    let catalog = Arc::clone(&config.catalog);
    let (store, tables) = (Store::new(control.clone()), source(control.clone()));
    let maintenance = Maintenance::new(config.maintenance.clone(), store.clone(), tables.clone(), destination.clone());
    let worker = Worker::new(settings, store.clone(), tables, destination.clone(), Arc::clone(&catalog));
    let callers = |connections, timeout| database.pool_for_callers(connections, timeout);
    let stores = Stores {
        api: store.over(callers(config.api_connections, service::CALL_TIMEOUT)),
        probe: Store::new(callers(1, service::CALL_TIMEOUT)),
        control: Some(Store::new(control.clone())).filter(|_| workers > 0),
    };
    let counting = callers(COUNTING_CONNECTIONS, service::COUNTING_TIMEOUT);
    let settings = service::Settings { destination, catalog, terms: config.terms };
    let service = Service::new(settings, stores, source(counting), stopping.clone());
    Wired { exports: Exports { worker, maintenance }, service }
}
