//! `serve` and `worker`: run the service or its workers until a signal.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use crate::catalog::Catalog;
use crate::catalog::pattern::Reason;
use crate::command::BadUsage;
use crate::config::{self, CatalogFile, Config};
use crate::demo;
use crate::duration;
use crate::http::{self, Access, ConnectionLimits};
use crate::job::Retention;
use crate::postgres::{self, Database};
use crate::store::Store;
use anyhow::{Context, anyhow, ensure};
use cdc_capture::Findings;
use cdc_dataset::{Fault, Faults};
use clap::Args;
use rustix::process::{Resource, Rlimit};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::command::catalog::{refuse_faults, untrack_hint};
use crate::command::database_handle::{DatabaseHandle, join_or_start, prepare, start};
use crate::command::drain::drain_then_shutdown;
use crate::command::reload::Reload;
use crate::command::signals::stop_on_signal;
use crate::command::start::{Logs, block_on, settings};
use crate::command::wiring::{PreparedOutput, Wired, api_connections, control_connections, export_connections, wire};

/// The connections of a worker that serves metrics: one checks Postgres, one reads the gauges, and one the size of the
/// change log.
const WORKER_METRICS_CONNECTIONS: u32 = 3;

/// The options of `serve`.
#[derive(Args, Default)]
pub(crate) struct Serve {
    /// Serve the API only; `cdc-export worker`, in other processes, runs the exports
    #[arg(long)]
    no_workers: bool,
}

impl Serve {
    /// Serves the API. Runs the exports too, unless `--no-workers` is given.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let config = settings(CatalogFile::Read, Logs::AsSet)?;
        if self.no_workers {
            refuse_missing(&config, config.missing_mask_secret().as_slice())?;
            return block_on(run(config, Role::Api));
        }
        refuse_missing(&config, &config.missing_secrets())?;
        block_on(run(config, Role::Service))
    }
}

/// The part of the service that a process runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The API and the exports.
    Service,
    Api,
    /// The exports only. METRICS_PORT serves the metrics of this process, which other processes don't count.
    Worker,
}

async fn run(config: Config, role: Role) -> anyhow::Result<ExitCode> {
    let limits = raise_descriptor_limit();
    // The handler is installed first, so that a signal during the start stops the process properly.
    let shutdown = stop_on_signal()?;
    // The port is opened first, so that a second service on the same port fails before it changes the database.
    let listener = match (role, config.metrics_port) {
        (Role::Service | Role::Api, _) => Some(listen(&config.http, "PORT").await?),
        (Role::Worker, Some(port)) => {
            Some(listen(&http::Settings { port, ..config.http.clone() }, "METRICS_PORT").await?)
        }
        (Role::Worker, None) => None,
    };
    let Some(handle) = database_handle(&config, role, &shutdown).await? else { return Ok(ExitCode::SUCCESS) };
    let done = run_on(&config, role, listener, limits, &handle.database, shutdown).await;
    handle.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

async fn run_on(
    config: &Config,
    role: Role,
    listener: Option<TcpListener>,
    limits: ConnectionLimits,
    database: &Database,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let workers = if role == Role::Api { 0 } else { config.worker.workers };
    let database = &database.with_pool_of(control_connections(workers));
    // The migration may wait for another replica.
    let (access, folder, reload) = tokio::select! {
        prepared = prepare_start(config, role, listener.as_ref(), database, workers) => prepared?,
        () = shutdown.cancelled() => return Ok(()),
    };
    // A process that runs no exports doesn't wait for any.
    let stops = drain_then_shutdown(&shutdown, if workers == 0 { Duration::ZERO } else { config.drain });
    let shutdown = stops.shutdown.clone();
    let reloading = reload.run(shutdown.clone());
    let Wired { exports, service } = wire(config, database, folder, workers, &stops);
    let seeded = async {
        check_tables(config, database).await?;
        if role != Role::Worker && config.seed_rows > 0 {
            demo::seed(&database.pool(), config.seed_rows).await?;
        }
        anyhow::Ok(())
    };
    // The seeding may wait for another replica.
    tokio::select! {
        seeded = seeded => seeded?,
        () = shutdown.cancelled() => return Ok(()),
    }
    if workers > 0 {
        exports.announce().await;
        log_retention(config);
        // Verification of manifests requires the public key.
        if let Some(key) = &config.worker.publisher.key {
            tracing::info!(event = "manifests_signed", publicKey = key.public_key());
        }
    }
    if role == Role::Worker {
        tracing::info!(event = "working");
    }
    if let Some(listener) = &listener {
        tracing::info!(event = "listening", address = %format!("http://{}", listener.local_addr()?));
    }
    let served = async {
        let Some((listener, access)) = listener.zip(access) else { return };
        let router = if role == Role::Worker { http::monitoring_router } else { http::router };
        http::serve(listener, router(service, access, &config.http), limits, shutdown).await;
    };
    let exported = async {
        if workers > 0 {
            exports.run(stops).await;
        }
    };
    // The API and the workers end together. An API without workers would accept jobs that no process runs.
    let (reloaded, ..) = tokio::join!(reloading, served, exported);
    reloaded?;
    tracing::info!(event = "stopped");
    Ok(())
}

/// Prepares the destination and the schema, and checks that the database allows this process's connections.
async fn prepare_start(
    config: &Config,
    role: Role,
    listener: Option<&TcpListener>,
    database: &Database,
    workers: u32,
) -> anyhow::Result<(Option<Access>, PreparedOutput, Reload)> {
    // Without tables there is no key, and the refused start makes nothing.
    if listener.is_some()
        && config.http.access.is_none()
        && matches!(postgres::require_migrated(database).await, Err(postgres::Error::NotMigrated))
    {
        return Err(config::Error::no_keys(config.http.host).into());
    }
    let folder = PreparedOutput::prepare(config).await?;
    prepare(config, database).await?;
    require_accepted_secret(config, database).await?;
    let exports = if workers == 0 { 0 } else { export_connections(config, workers) };
    let calls = match (role, listener) {
        (Role::Service | Role::Api, _) => api_connections(config),
        (Role::Worker, Some(_)) => WORKER_METRICS_CONNECTIONS,
        (Role::Worker, None) => 0,
    };
    let needed = postgres::require_connections(database, exports + calls).await;
    needed.with_context(|| database.to_string())?;
    folder.warn_if_new(config, database).await?;
    let access = match listener {
        Some(_) => Some(access(config, database).await?),
        None => None,
    };
    let reload = Reload::begin(config, database).await?;
    Ok((access, folder, reload))
}

/// Refuses to start if the database accepts another secret of masks: equal values would get other tokens.
async fn require_accepted_secret(config: &Config, database: &Database) -> anyhow::Result<()> {
    let Some(secret) = &config.worker.mask_secret else { return Ok(()) };
    if Store::new(database.pool()).accepts_mask_secret(&secret.fingerprint).await? {
        return Ok(());
    }
    Err(BadUsage(
        "MASK_SECRET: it is not the secret that the database accepts: set it to that one, or accept the new one by `cdc-export mask rotate`"
            .to_owned(),
    )
    .into())
}

fn refuse_missing(config: &Config, missing: &[String]) -> Result<(), config::Error> {
    match &config.catalog_file {
        Some(file) if !missing.is_empty() => Err(config::Error::no_secrets(file, missing)),
        _ => Ok(()),
    }
}

/// Refuses a dataset file that doesn't fit its tables. Only warns if the demo's catalog doesn't fit.
///
/// Also warns of tables that can't be read, of subscriptions that may stall, and of tables whose changes aren't
/// captured. Rows that change before `track` are in no delta: after `track`, each consumer needs a full export.
async fn check_tables(config: &Config, database: &Database) -> anyhow::Result<()> {
    let catalog = config.catalog.get();
    let mut found = Findings::check(&database.pool(), catalog.datasets(), &catalog.left_out_tables()).await?;
    warn_of_pattern_tables(&catalog, found.take_out(catalog.of_patterns()));
    let Findings { faults, untracked, broken, unreadable, stalling, without_dataset, .. } = found;
    let (removed, faults): (Vec<_>, Vec<_>) = faults.0.into_iter().partition(Fault::is_of_removed_mask);
    for Fault { dataset, why, .. } in removed {
        tracing::error!(event = "mask_removed", dataset, "its exports will fail: {why}");
    }
    let faults = Faults(faults);
    match &config.catalog_file {
        Some(file) => refuse_faults(&catalog, file, faults)?,
        None if faults.0.is_empty() => {}
        None => tracing::warn!(
            event = "datasets_unset",
            faults = %faults,
            "DATASETS is unset, so there is only the demo's dataset `users`, which has no such table here: name a file in DATASETS, and \
             `cdc-export datasets add TABLE` writes it"
        ),
    }
    for dataset in untracked.into_iter().chain(broken) {
        tracing::warn!(
            event = "not_captured",
            dataset,
            "the changes of its table are not captured: `cdc-export track {dataset}` first, then a full export for each consumer that \
             needs one"
        );
    }
    for table in without_dataset {
        tracing::warn!(event = "captured_without_dataset", %table, "{}", untrack_hint(&table.to_string()));
    }
    for Fault { dataset, why, .. } in unreadable {
        tracing::warn!(event = "not_readable", dataset, "its exports will fail: {why}");
    }
    for Fault { dataset, why, .. } in stalling {
        tracing::warn!(event = "subscription_may_stall", dataset, "{why}");
    }
    Ok(())
}

/// Warns of the tables of patterns that can't be exported, in one line: there may be hundreds.
fn warn_of_pattern_tables(catalog: &Catalog, found: BTreeSet<String>) {
    // The rows of a partition are exported with those of its table.
    let left_out = catalog.left_out().iter().filter(|it| it.reason != Reason::Partition);
    let left_out = left_out.map(|it| it.table.to_string());
    let tables: Vec<_> = found.into_iter().chain(left_out).collect();
    if let [first, ..] = tables.as_slice() {
        tracing::warn!(
            event = "tables_not_ready",
            tables = tables.len(),
            first,
            "tables that patterns match can't be exported yet: `cdc-export datasets list` says why"
        );
    }
}

/// Logs how the service interprets RETAIN_FILES, RETAIN_JOBS and RETAIN_UNACKED. For example, `30` is a count and `30d`
/// is an age.
fn log_retention(config: &Config) {
    let settings = &config.maintenance;
    for (setting, retention) in [("RETAIN_FILES", settings.retain_files), ("RETAIN_JOBS", settings.retain_jobs)] {
        let count = retention.count.map(|count| format!("the {count} newest exports of each consumer and dataset"));
        let age = retention.age.map(|age| format!("exports that ended in the last {}", duration::display(age)));
        let kept = match (count, age) {
            (None, None) => continue,
            (Some(one), None) | (None, Some(one)) => one,
            (Some(count), Some(age)) => format!("{count}, of the {age}"),
        };
        tracing::info!(event = "retention", setting, "{setting} keeps {kept}");
    }
    if [settings.retain_files, settings.retain_jobs].iter().any(|retention| *retention != Retention::default()) {
        let (setting, time) = ("RETAIN_UNACKED", duration::display(settings.retain_unacked));
        tracing::info!(
            event = "retention",
            setting,
            "{setting} keeps for at most {time} what an acknowledging consumer has not acknowledged"
        );
    }
}

/// Listens on HOST and `settings.port`. Errors name the setting of the port, `name`.
async fn listen(settings: &http::Settings, name: &'static str) -> anyhow::Result<TcpListener> {
    let error = match http::listen(settings).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    let address = SocketAddr::from((settings.host, settings.port));
    Err(match error.kind() {
        io::ErrorKind::AddrInUse => {
            anyhow!("{name}: another process listens on {address}: stop it, or set {name} to a free port")
        }
        io::ErrorKind::AddrNotAvailable => config::Error::no_such_host(settings.host).into(),
        _ => anyhow!("{name}: can't listen on {address}: {error}"),
    })
}

/// Decides which callers have access. If AUTH is unset and HOST is not a loopback address, callers need a key. The
/// start fails until a key exists.
async fn access(config: &Config, database: &Database) -> anyhow::Result<Access> {
    if let Some(access @ (Access::LocalCallers | Access::Everybody)) = config.http.access {
        return Ok(access);
    }
    if Store::new(database.pool()).keys().await?.is_empty() {
        ensure!(config.http.access.is_some(), config::Error::no_keys(config.http.host));
        tracing::warn!(
            event = "no_keys",
            "there are no keys, so every call is refused: `cdc-export keys create --name NAME` creates one"
        );
    }
    Ok(Access::Keys)
}

/// Raises the soft limit of open file descriptors to the hard limit, because the default of a shell is too low for the
/// API. Returns the resulting limits of connections.
fn raise_descriptor_limit() -> ConnectionLimits {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    // `None` means unlimited.
    let descriptor_limit = if raised.is_ok() { limit.maximum } else { limit.current };
    ConnectionLimits::for_descriptors(descriptor_limit.unwrap_or(u64::MAX))
}

pub(crate) fn run_worker() -> anyhow::Result<ExitCode> {
    let config = settings(CatalogFile::Read, Logs::AsSet)?;
    refuse_missing(&config, &config.missing_secrets())?;
    block_on(run(config, Role::Worker))
}

/// Opens the database without a migration. Returns `None` if a signal stops the start.
///
/// A service runs its private server itself. If it joined that of another one, both would end with the other one.
async fn database_handle(
    config: &Config,
    role: Role,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<DatabaseHandle>> {
    if let Some(database) = &config.database {
        return Ok(Some(database.clone().into()));
    }
    let opened = async {
        match role {
            Role::Service => start(&config.embedded).await.map_err(Into::into),
            Role::Api | Role::Worker => join_or_start(&config.embedded).await,
        }
    };
    tokio::select! {
        handle = opened => handle.map(Some),
        () = shutdown.cancelled() => Ok(None),
    }
}
