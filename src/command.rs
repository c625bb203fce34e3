//! The commands: which there are, and what each does.

/// A line for whoever called, as `println!` prints one; but a reader who has seen enough, as `head`, is an error, which `main`
/// knows.
macro_rules! outln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($text)*).map_err(anyhow::Error::from)
    }};
}

mod arguments;
mod backend;
pub(crate) mod client;
mod database_handle;
mod datasets;
mod download;
mod export;
mod keys;
mod plan;
mod serve;
mod status;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use cdc_export::config::{self, CatalogFile, Config};
use cdc_export::dataset::Dataset;
use cdc_export::dataset::catalog::Faults;
use cdc_export::demo;
use cdc_export::postgres::Database;
use cdc_export::source::{capture, catalog};
use cdc_export::telemetry;
use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use crate::CommandLine;
use crate::command::arguments::{Datasets, Download, Export, Keys, Plan, Serve, Status};
use crate::command::backend::Backend;
use crate::command::client::{Address, Client};
use crate::command::database_handle::{DatabaseHandle, wire, with_database};

/// What may be asked for.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Serve the API and run exports (the default)
    Serve(Serve),
    /// Run exports for services on the same database and output folder, without an API
    Worker,
    /// Bring the database's schema up to date
    Migrate,
    /// Top the demo table up with users
    Seed {
        /// How many there shall be
        #[arg(long)]
        rows: u64,
    },
    /// Export a consumer's rows to a file, and wait for it
    Export(Export),
    /// Show consumers and open jobs
    Status(Status),
    /// Fetch the file of a completed export, and check it
    Download(Download),
    /// Ask the service on HOST and PORT whether it is ready
    Healthcheck,
    /// Capture the changes of a table that was there before, and let it be exported
    Track {
        /// The dataset whose table it is
        dataset: String,
    },
    /// Remove what `track` installed; the table is exported no more
    Untrack {
        /// The dataset whose table it is
        dataset: String,
    },
    /// Look at what may be exported
    Datasets {
        #[command(subcommand)]
        what: Datasets,
    },
    /// Show what an export would read: rows, bytes, and Postgres's plan
    Plan(Plan),
    /// Make, list and revoke the keys of the API
    Keys {
        #[command(subcommand)]
        what: Keys,
    },
    /// Print what makes a shell complete these commands
    Completions {
        /// Which shell
        shell: Shell,
    },
}

impl Default for Command {
    fn default() -> Command {
        Command::Serve(Serve::default())
    }
}

impl Command {
    /// What to log. A command that a person waits for says by itself what it does.
    pub(crate) fn telemetry(&self, config: &Config) -> telemetry::Settings {
        let settings = config.telemetry;
        match self {
            Command::Serve(_) | Command::Worker => settings,
            _ => telemetry::Settings { level: settings.level.min(LevelFilter::ERROR), ..settings },
        }
    }

    /// Whether it needs the catalog. What a running service is asked or repaired by doesn't: somebody may be editing the file.
    pub(crate) fn catalog_file(&self) -> CatalogFile {
        match self {
            Command::Serve(_) | Command::Worker | Command::Export(_) | Command::Plan(_) => CatalogFile::Read,
            Command::Track { .. } | Command::Untrack { .. } | Command::Status(_) => CatalogFile::Read,
            Command::Datasets { what: Datasets::Check | Datasets::List } => CatalogFile::Read,
            Command::Datasets { what: Datasets::Add { .. } } | Command::Keys { .. } => CatalogFile::Unread,
            Command::Migrate | Command::Seed { .. } | Command::Healthcheck | Command::Download(_) => {
                CatalogFile::Unread
            }
            Command::Completions { .. } => CatalogFile::Unread,
        }
    }

    /// The service elsewhere that is meant, if one is.
    pub(crate) fn server(&self) -> Option<&Address> {
        match self {
            Command::Export(Export { at, .. }) | Command::Status(Status { at, .. }) => at.server.as_ref(),
            Command::Download(Download { at, .. }) => at.server.as_ref(),
            _ => None,
        }
    }

    /// Does it at a service elsewhere.
    pub(crate) async fn run_remotely(self, client: Client) -> anyhow::Result<ExitCode> {
        match self {
            Command::Export(what) => export::export_remotely(client, &what).await,
            other => other.run_at(&Backend::Remote(client)).await,
        }
    }

    /// Does what may be done here and elsewhere.
    async fn run_at(&self, backend: &Backend) -> anyhow::Result<ExitCode> {
        match self {
            Command::Status(what) => status::status(backend, what).await?,
            Command::Download(Download { job, output, .. }) => {
                download::download(backend, (*job).into(), output.as_ref()).await?;
            }
            _ => unreachable!("every other command is for this machine alone"),
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Does it.
    pub(crate) async fn run(self, config: Config) -> anyhow::Result<ExitCode> {
        match self {
            Command::Serve(how) => serve::serve(config, &how).await,
            Command::Worker => serve::work(config).await,
            Command::Healthcheck => status::healthcheck(&config).await,
            Command::Export(what) => {
                dataset_of(&config, &what.dataset)?;
                what.check()?;
                let handle = DatabaseHandle::open(&config).await?;
                let done = export::export(&config, &handle.database, &what).await;
                handle.close().await;
                done
            }
            Command::Migrate => with_database(&config, async |_| Ok(())).await,
            Command::Seed { rows } => with_database(&config, async |database| seed(database, rows).await).await,
            Command::Status(_) | Command::Download(_) => {
                let handle = DatabaseHandle::open(&config).await?;
                let service = wire(&config, &handle.database, 1, &CancellationToken::new()).service;
                let done = self.run_at(&Backend::Local(Box::new(service))).await;
                handle.close().await;
                done
            }
            Command::Track { dataset } => {
                let dataset = dataset_of(&config, &dataset)?;
                with_database(&config, async |database| {
                    check_one(&config, database, dataset).await?;
                    Ok(capture::track(&database.pool(1), dataset).await?)
                })
                .await
            }
            Command::Untrack { dataset } => {
                let dataset = dataset_of(&config, &dataset)?;
                with_database(&config, async |database| {
                    Ok(capture::untrack(&database.pool(1), dataset, &config.catalog).await?)
                })
                .await
            }
            Command::Datasets { what } => {
                with_database(&config, async |database| datasets::run(&config, database, what).await).await
            }
            Command::Keys { what } => with_database(&config, async |database| keys::run(database, what).await).await,
            Command::Plan(what) => {
                with_database(&config, async |database| plan::plan(&config, database, &what).await).await
            }
            Command::Completions { shell } => completions(shell),
        }
    }
}

/// Prints what a shell reads. Whole or not at all.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "cdc-export", &mut script);
    outln!("{}", String::from_utf8(script)?.trim_end()).map(|()| ExitCode::SUCCESS)
}

/// What was asked for can't be, whatever the database has.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadUsage(String);

fn dataset_of<'c>(config: &'c Config, name: &str) -> Result<&'c Arc<Dataset>, BadUsage> {
    let none = || BadUsage(format!("there is no dataset `{name}`; there are: {}", config.catalog.names()));
    config.catalog.get(name).ok_or_else(none)
}

/// Holds the catalog against the tables, if a file says it.
async fn check(config: &Config, database: &Database) -> anyhow::Result<()> {
    let Some(file) = &config.catalog_file else { return Ok(()) };
    refuse(config, file, catalog::check(&database.pool(1), &config.catalog).await?)
}

/// Holds one dataset of the file against its table: another one's table may be gone, or not there yet.
async fn check_one(config: &Config, database: &Database, dataset: &Dataset) -> anyhow::Result<()> {
    let Some(file) = &config.catalog_file else { return Ok(()) };
    refuse(config, file, catalog::check_one(&database.pool(1), &config.catalog, dataset).await?)
}

fn refuse(config: &Config, file: &Path, faults: Faults) -> anyhow::Result<()> {
    if faults.0.is_empty() {
        return Ok(());
    }
    Err(config::Error::catalog(file, config.catalog.mistakes(faults)).into())
}

async fn seed(database: &Database, rows: u64) -> anyhow::Result<()> {
    let bar = bar(rows);
    let inserted = demo::top_up(&database.pool(1), rows, |inserted| bar.set_position(inserted)).await?;
    bar.finish_and_clear();
    outln!("{inserted} users added.")
}

/// A bar of rows on a terminal; nothing in a pipe.
fn bar(length: u64) -> ProgressBar {
    bar_like("{bar:30} {percent:>3}%  {human_pos} rows  {per_sec}  {eta} left  {msg}", length)
}

/// The same of bytes.
fn bar_of_bytes(length: u64) -> ProgressBar {
    bar_like("{bar:30} {percent:>3}%  {binary_bytes}  {binary_bytes_per_sec}  {eta} left", length)
}

fn bar_like(template: &str, length: u64) -> ProgressBar {
    ProgressBar::new(length).with_style(ProgressStyle::with_template(template).expect("the template is a constant"))
}

/// A token that SIGTERM or Ctrl-C cancels; a second signal ends the process at once.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    // With a handler, however idle, a file past `ulimit -f` is an error of its write instead of the end of the process.
    let mut file_too_large = signal(SignalKind::from_raw(nix::libc::SIGXFSZ))?;
    tokio::spawn(async move { while file_too_large.recv().await.is_some() {} });
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        let mut next = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
        next().await;
        tracing::info!(event = "stopping");
        stop.cancel();
        next().await;
        #[expect(
            clippy::disallowed_methods,
            reason = "who signals twice wants no destructors; Postgres follows by its death signal"
        )]
        std::process::exit(1);
    });
    Ok(token)
}
