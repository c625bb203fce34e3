//! The command line: the parser, the commands and the exit code of the process. Each command has a file with its
//! arguments and its `run`. Only this module prints for users and uses anyhow.

/// Prints a line like `println!`, but returns an error if standard output is closed, for example by `head`. `main`
/// treats that error as success.
macro_rules! outln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($text)*).map_err(anyhow::Error::from)
    }};
}

mod apply;
mod catalog;
mod catalog_file;
mod completions;
mod database_handle;
mod datasets;
mod deliveries;
mod download;
mod drain;
mod export;
mod healthcheck;
mod keys;
mod lanes;
mod man;
mod mask;
mod migrate;
mod output;
mod plain;
mod pull;
mod reload;
mod seed;
mod serve;
mod server;
mod signals;
mod start;
mod status;
mod terminal;
mod track;
mod verify;
mod wiring;
mod words;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::command::apply::Apply;
use crate::command::completions::Completions;
use crate::command::datasets::DatasetsCommand;
use crate::command::deliveries::DeliveriesCommand;
use crate::command::download::Download;
use crate::command::export::ExportArguments;
use crate::command::keys::KeysCommand;
use crate::command::man::Man;
use crate::command::mask::MaskCommand;
use crate::command::plain::plain;
use crate::command::pull::Pull;
use crate::command::seed::Seed;
use crate::command::serve::Serve;
use crate::command::status::Status;
use crate::command::terminal::is_closed_stdout;
use crate::command::track::{Track, Untrack};
use crate::command::verify::Verify;
use crate::config;
use pg_session::failure::chain;

/// Exports the rows of Postgres tables to files for downstream consumers, without gaps and without duplicates.
///
/// Settings are environment variables. The file `.env` in the current folder can set them too. `.env.example` lists all
/// settings.
#[derive(Parser)]
#[command(version = env!("CDC_EXPORT_VERSION"))]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
}

/// Parses the arguments, runs the command and returns the exit code. Exit code 0: the command succeeded. Exit code 1:
/// it failed. Exit code 2: bad usage, a bad setting or a bad catalog. clap reports bad usage itself.
pub fn main() -> ExitCode {
    let CommandLine { command } = CommandLine::parse();
    match command.unwrap_or_default().run() {
        Ok(code) => code,
        // The reader of standard output, for example `head`, has closed it.
        Err(error) if is_closed_stdout(&error) => ExitCode::SUCCESS,
        Err(error) if is_bad_usage(&error) => fail(2, &error),
        Err(error) => fail(1, &error),
    }
}

/// A subcommand and its arguments.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the service: the API, the web page and the exports (the default)
    Serve(Serve),
    /// Run exports without an API, for a service on the same database and output folder or bucket
    Worker,
    /// Create or update the service's own tables in the database
    Migrate,
    /// Fill the demo table `users` with generated users
    Seed(Seed),
    /// Run an export for a consumer, and wait for its file
    Export(ExportArguments),
    /// Show all consumers, and the exports that are waiting or running
    Status(Status),
    /// Download the files of a completed export, and verify their SHA-256
    Download(Download),
    /// Download all exports of a consumer into a folder, in order and each once
    Pull(Pull),
    /// Keep tables of another Postgres equal to the source, one transaction per export
    Apply(Apply),
    /// Check that a folder or bucket has every exported file, unchanged, as its manifests say
    Verify(Verify),
    /// Check that the service on HOST and PORT is ready
    Healthcheck,
    /// Install the triggers that capture the changes of a dataset's table, so that it can be exported. Uses
    /// DATABASE_URL and DATASETS
    Track(Track),
    /// Remove the capture triggers from the table of a dataset, from a named table, or from all tables. A dataset
    /// that needs them can't be exported then
    Untrack(Untrack),
    /// Check, list or add datasets: the tables that may be exported. Uses DATABASE_URL and DATASETS
    #[command(subcommand)]
    Datasets(DatasetsCommand),
    /// Try the receivers of export events
    #[command(subcommand)]
    Deliveries(DeliveriesCommand),
    /// Create, list and revoke API keys. Uses DATABASE_URL
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Accept a new secret of masks, or the end of a mask
    #[command(subcommand)]
    Mask(MaskCommand),
    /// Print a shell script that completes these commands with Tab
    Completions(Completions),
    /// Write man pages of these commands into a folder
    Man(Man),
}

impl Default for Command {
    fn default() -> Command {
        Command::Serve(Serve::default())
    }
}

impl Command {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Serve(serve) => serve.run(),
            Command::Worker => serve::run_worker(),
            Command::Migrate => migrate::run(),
            Command::Seed(seed) => seed.run(),
            Command::Export(export) => export.run(),
            Command::Status(status) => status.run(),
            Command::Download(download) => download.run(),
            Command::Pull(pull) => pull.run(),
            Command::Apply(apply) => apply.run(),
            Command::Verify(verify) => verify.run(),
            Command::Healthcheck => healthcheck::run(),
            Command::Track(track) => track.run(),
            Command::Untrack(untrack) => untrack.run(),
            Command::Datasets(datasets) => datasets.run(),
            Command::Deliveries(deliveries) => deliveries.run(),
            Command::Mask(mask) => mask.run(),
            Command::Keys(keys) => keys.run(),
            Command::Completions(completions) => completions.run(),
            Command::Man(man) => man.run(),
        }
    }
}

fn is_bad_usage(error: &anyhow::Error) -> bool {
    let is_usage_error =
        error.downcast_ref::<cdc_client::Error>().is_some_and(|it| matches!(it.root(), cdc_client::Error::Usage(_)));
    is_usage_error || error.is::<BadUsage>() || error.is::<config::Error>()
}

/// Arguments that are invalid regardless of the state of the database.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadUsage(String);

/// Prints the error and its causes on one line. A bad catalog has one line for each mistake. A refused export has an
/// indented line for each export that must be loaded first.
fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    // The text may contain names that other users chose.
    for line in chain(error.as_ref()).lines() {
        eprintln!("{}{}", if line.starts_with(' ') { "" } else { "cdc-export: " }, plain(line));
    }
    ExitCode::from(code)
}
