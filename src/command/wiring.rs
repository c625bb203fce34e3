//! Wires the modules to one database, and counts the connections that they may open.

use std::sync::Arc;

use anyhow::anyhow;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config};
use crate::delivery;
use crate::maintenance::Maintenance;
use crate::postgres::Database;
use crate::receiver::Receivers;
use crate::service::{self, Service, Stores};
use crate::store::Store;
use crate::store::probe::Probe;
use crate::worker::{self, Stops, Worker};
use cdc_capture::Source;
use cdc_destination::{self, Destination, Limited, Prepared};
use pg_session::pool::Pool;
use pg_session::wait;

/// Returns the number of connections that `workers` concurrent exports may open.
///
/// Each export has a leader, a reader and a heartbeat. All exports share the further readers, the connections that
/// claim and settle jobs, and one connection that listens.
pub(super) fn export_connections(config: &Config, workers: u32) -> u32 {
    3 * workers + (config.readers - 1) + control_connections(workers) + 1
}

/// Returns the number of connections of the API: those of API_CONNECTIONS, one that checks Postgres, and those that
/// count rows for `/consumers`.
pub(super) fn api_connections(config: &Config) -> u32 {
    config.api_connections + 1 + COUNTING_CONNECTIONS
}

pub(super) const COUNTING_CONNECTIONS: u32 = 2;

/// Returns one connection for each worker, to claim and settle jobs, and one for maintenance.
pub(super) fn control_connections(workers: u32) -> u32 {
    workers + 1
}

pub(super) struct Wired {
    pub(super) exports: Exports,
    pub(super) service: Service,
}

/// The tasks of a process that runs exports: the worker, maintenance, and the delivery of events.
pub(super) struct Exports {
    worker: Worker,
    maintenance: Maintenance,
    store: Store,
    receivers: Arc<Receivers>,
}

impl Exports {
    /// Records that this destination has a worker.
    pub(super) async fn announce(&self) {
        self.maintenance.announce().await;
    }

    /// Runs exports until `stops` ends them. Maintenance and deliveries continue until `shutdown`.
    pub(super) async fn run(self, stops: Stops) {
        let Stops { drain, shutdown } = stops.clone();
        let work = async {
            self.worker.run(stops).await;
            // No export is running any more.
            shutdown.cancel();
        };
        let delivery = delivery::run(self.receivers.build(), self.store, shutdown.clone());
        tokio::join!(work, self.maintenance.run(drain, shutdown.clone()), delivery);
    }
}

/// The destination of files, and a flag that says if it is new.
pub(super) struct PreparedOutput {
    destination: Limited,
    prepared: Prepared,
}

impl PreparedOutput {
    pub(super) async fn prepare(config: &Config) -> anyhow::Result<PreparedOutput> {
        let wrong = |error: cdc_destination::Error| {
            let why = match &error {
                cdc_destination::Error::Missing(cause) => cause.to_string(),
                cdc_destination::Error::ReadOnly(cause) => format!("it can't be written: {cause}"),
                other => pg_session::failure::chain(other),
            };
            let wrong = config::Error::output(&config.output, &why);
            // A wrong setting has exit code 2, because another start can't succeed. A failure that may pass has exit
            // code 1.
            if error.may_pass() { anyhow!("{wrong}") } else { wrong.into() }
        };
        let destination = config.output.destination().map_err(wrong)?;
        let wait = format!("{} does not answer: look at its disk, its mount or the network", config.output);
        let prepared = wait::named(&wait, destination.prepare()).await.map_err(wrong)?;
        Ok(PreparedOutput { destination, prepared })
    }

    /// Warns if the destination is new and the database has exported files, because these are in another destination.
    pub(super) async fn warn_if_new(&self, config: &Config, database: &Database) -> anyhow::Result<()> {
        if self.prepared == Prepared::New && Store::new(database.pool()).has_files().await? {
            tracing::warn!(
                event = "output_folder_new",
                folder = %config.output,
                "the folder of OUTPUT_DIR, or the bucket of OUTPUT_URL, is new, and the files of earlier exports are elsewhere, or on another \
                 host: set OUTPUT_DIR to that folder's absolute path, or OUTPUT_URL, if this start was meant to have them"
            );
        }
        Ok(())
    }
}

/// Wires the service only, for a command that only reads. Doesn't change the destination.
pub(super) fn wire_service(config: &Config, database: &Database) -> anyhow::Result<Service> {
    let output = PreparedOutput { destination: config.output.destination()?, prepared: Prepared::Known };
    let never = CancellationToken::new();
    let stops = Stops { drain: never.clone(), shutdown: never };
    Ok(wire(config, database, output, 1, &stops).service)
}

/// Wires the modules for `workers` concurrent exports. 0 wires the service only.
pub(super) fn wire(config: &Config, database: &Database, output: PreparedOutput, workers: u32, stops: &Stops) -> Wired {
    let destination = output.destination;
    let source = |pool| Source::new(database.options().clone(), pool, config.readers);
    let control = Pool::from(database.pool());
    let settings = worker::Settings { workers, ..config.worker.clone() };
    let catalog = config.catalog.clone();
    // Receivers without a secret are included, because another process may have the secret.
    let listeners = catalog.get().listeners().to_vec();
    let (store, tables) = (Store::new(control.clone()).with_listeners(listeners), source(control.clone()));
    let (kept, output) = (config.maintenance.clone(), destination.clone());
    let maintenance = Maintenance::new(kept, store.clone(), tables.clone(), output, catalog.clone(), config.terms);
    let worker = Worker::new(settings, store.clone(), tables, destination.clone(), catalog.clone());
    let callers = |connections, timeout| Pool::from(database.pool_for_callers(connections, timeout)).careful();
    let exports = Exports { worker, maintenance, store: store.clone(), receivers: Arc::clone(&config.receivers) };
    let stores = Stores {
        api: store.over(callers(config.api_connections, service::deadline::call_timeout())),
        probe: Arc::new(Probe::new(database.options().clone())),
        control: Some(Store::new(control.clone())).filter(|_| workers > 0),
    };
    let counting = callers(COUNTING_CONNECTIONS, service::COUNTING_TIMEOUT);
    let settings = service::Settings {
        destination,
        catalog,
        terms: config.terms,
        redirects_downloads: config.redirects_downloads,
        log_max_bytes: config.maintenance.log_caps.bytes,
    };
    let service = Service::new(settings, stores, source(counting), stops.drain.clone(), stops.shutdown.clone());
    Wired { exports, service }
}
