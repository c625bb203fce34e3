//! How a command begins: its settings, its log, and the runtime it runs on.

use std::process::ExitCode;
use std::time::Duration;

use crate::config::{self, CatalogFile, Config, Environment};
use crate::telemetry::{self, spans};
use anyhow::Context;
use tracing::level_filters::LevelFilter;

/// How much a command logs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Logs {
    /// As LOG_LEVEL says.
    AsSet,
    /// Errors alone: the command prints by itself what it does.
    Errors,
}

/// Reads all settings, and begins to log.
///
/// The process may restart itself here, to trust the authorities of `sslrootcert` alone: nothing may be started before
/// this call.
pub(super) fn settings(catalog: CatalogFile, logs: Logs) -> anyhow::Result<Config> {
    let environment = Environment::read()?;
    let misspelt = environment.misspelt();
    let config = environment.config(catalog)?;
    if let Some(file) = &config.authorities {
        config::trust_alone(file).context("can't restart with the authorities of sslrootcert alone")?;
    }
    let least = match logs {
        Logs::AsSet => LevelFilter::TRACE,
        Logs::Errors => LevelFilter::ERROR,
    };
    telemetry::start(&config.telemetry, least);
    #[cfg(feature = "otel")]
    if let Some(settings) = &config.spans {
        spans::start(settings).map_err(config::Error::collector)?;
    }
    for misspelt in misspelt {
        match logs {
            Logs::AsSet => tracing::warn!(event = "setting_unknown", "{misspelt}"),
            Logs::Errors => eprintln!("cdc-export: {misspelt}"),
        }
    }
    #[cfg(debug_assertions)]
    if let Some(list) = &config.failpoints {
        crate::failpoint::arm(list)?;
    }
    Ok(config)
}

/// Runs a command to its end.
pub(super) fn block_on(task: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(task);
    // A thread that hangs on a dead disk or network must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(3));
    spans::end();
    done
}
