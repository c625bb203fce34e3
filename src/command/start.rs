//! The start of a command: its settings, its log, and its async runtime.

use std::process::ExitCode;
use std::time::Duration;

use crate::config::{CatalogFile, Config, Environment};
use crate::telemetry::{self, spans};
use tracing::level_filters::LevelFilter;

/// The log level of a command.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Logs {
    /// The level in LOG_LEVEL.
    AsSet,
    /// Errors only, because the command prints its own output.
    Errors,
}

/// Reads all settings, and starts the log.
pub(super) fn settings(catalog: CatalogFile, logs: Logs) -> anyhow::Result<Config> {
    let environment = Environment::read()?;
    arm(&environment)?;
    let config = environment.config(catalog)?;
    let least = match logs {
        Logs::AsSet => LevelFilter::TRACE,
        Logs::Errors => LevelFilter::ERROR,
    };
    telemetry::start(&config.telemetry, least);
    #[cfg(feature = "otel")]
    if let Some(settings) = &config.spans {
        spans::start(settings).map_err(crate::config::Error::collector)?;
    }
    Ok(config)
}

/// Arms the failpoints that a test sets.
pub(super) fn arm(environment: &Environment) -> anyhow::Result<()> {
    #[cfg(debug_assertions)]
    if let Some(list) = environment.failpoints() {
        failpoint::arm(list)?;
    }
    let _ = environment;
    Ok(())
}

pub(super) fn block_on(task: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(task);
    // A thread that hangs on a failed disk or network must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(3));
    spans::end();
    done
}
