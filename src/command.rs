//! The command line: its parser, the commands and the process's exit code. Each command has its arguments and its `run`
//! in a file of its own. Only this module prints for people and uses anyhow.

/// Prints a line as `println!` does, but returns an error where standard output is closed, as by `head`; `main` takes
/// that for success.
macro_rules! outln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($text)*).map_err(anyhow::Error::from)
    }};
}

mod ack;
mod apply;
mod cancel;
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
mod list;
mod man;
mod migrate;
mod output;
mod plain;
mod plan;
mod pull;
mod retry;
mod rounds;
mod schedules;
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

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::client;
use crate::command::ack::Ack;
use crate::command::apply::Apply;
use crate::command::cancel::Cancel;
use crate::command::completions::Completions;
use crate::command::datasets::Datasets;
use crate::command::deliveries::Deliveries;
use crate::command::download::Download;
use crate::command::export::Export;
use crate::command::keys::Keys;
use crate::command::list::List;
use crate::command::man::Man;
use crate::command::plain::plain;
use crate::command::plan::Plan;
use crate::command::pull::Pull;
use crate::command::retry::Retry;
use crate::command::schedules::Schedules;
use crate::command::seed::Seed;
use crate::command::serve::Serve;
use crate::command::status::Status;
use crate::command::track::{Track, Untrack};
use crate::command::verify::Verify;
use crate::config;
use crate::telemetry::chain;

/// Hands a table's rows to downstream consumers as files, with nothing lost and nothing twice.
///
/// Settings come from environment variables, and from the file `.env` of the current folder; `.env.example` lists them
/// all.
#[derive(Parser)]
#[command(version = env!("CDC_EXPORT_VERSION"))]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
}

/// Runs what the process was asked for. Exit codes are 0: done; 1: failed; 2: bad usage, which clap reports by itself,
/// or a bad setting or catalog.
pub fn main() -> ExitCode {
    let CommandLine { command } = CommandLine::parse();
    match command.unwrap_or_default().run() {
        Ok(code) => code,
        // A program such as `head` reads our standard output and has closed it.
        Err(error) if is_unread(&error) => ExitCode::SUCCESS,
        Err(error) if is_bad_usage(&error) => fail(2, &error),
        Err(error) => fail(1, &error),
    }
}

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the service: the API, the page, and the exports (the default)
    Serve(Serve),
    /// Run exports for a service on the same database and output folder or bucket, without an API
    Worker,
    /// Create or update the service's own tables in the database
    Migrate,
    /// Fill the demo table `users` with made-up users
    Seed(Seed),
    /// Run an export for a consumer, and wait for its file
    Export(Export),
    /// Show every consumer and the exports that are waiting or running
    Status(Status),
    /// List exports, newest first
    List(List),
    /// Say that an export, and all before it, are loaded
    Ack(Ack),
    /// Cancel an export that is waiting or running
    Cancel(Cancel),
    /// Run an export again that failed or was cancelled
    Retry(Retry),
    /// Fetch the file of a completed export, and check that it arrived whole
    Download(Download),
    /// Fetch all exports of a consumer into a folder, in order, each once, and remember where it is
    Pull(Pull),
    /// Keep a table of another Postgres equal to the source: each export once, in one transaction
    Apply(Apply),
    /// Check that a folder or bucket of exports has every file, unchanged, by their manifests
    Verify(Verify),
    /// Check that the service on HOST and PORT is ready
    Healthcheck,
    /// Install triggers that record the changes of a dataset's table, so that it can be exported
    Track(Track),
    /// Remove the triggers of `track` from a dataset's table, a named table, or all; a dataset without them can't be
    /// exported
    Untrack(Untrack),
    /// Check, list or extend the datasets: the tables that may be exported
    #[command(subcommand)]
    Datasets(Datasets),
    /// List the schedules: the exports that the service asks for by itself
    #[command(subcommand)]
    Schedules(Schedules),
    /// List what receivers were told of ended exports, and tell them again
    #[command(subcommand)]
    Deliveries(Deliveries),
    /// Show what an export would read, without running it: rows, bytes, and Postgres's plan
    Plan(Plan),
    /// Create, list and revoke API keys
    #[command(subcommand)]
    Keys(Keys),
    /// Print a script that completes these commands with Tab in your shell
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
    /// Runs the command to its end.
    ///
    /// # Errors
    /// If the command fails. [`BadUsage`] and a bad setting mean exit code 2.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Serve(serve) => serve.run(),
            Command::Worker => serve::run_worker(),
            Command::Migrate => migrate::run(),
            Command::Seed(seed) => seed.run(),
            Command::Export(export) => export.run(),
            Command::Status(status) => status.run(),
            Command::List(list) => list.run(),
            Command::Ack(ack) => ack.run(),
            Command::Cancel(cancel) => cancel.run(),
            Command::Retry(retry) => retry.run(),
            Command::Download(download) => download.run(),
            Command::Pull(pull) => pull.run(),
            Command::Apply(apply) => apply.run(),
            Command::Verify(verify) => verify.run(),
            Command::Healthcheck => healthcheck::run(),
            Command::Track(track) => track.run(),
            Command::Untrack(untrack) => untrack.run(),
            Command::Datasets(datasets) => datasets.run(),
            Command::Schedules(schedules) => schedules.run(),
            Command::Deliveries(deliveries) => deliveries.run(),
            Command::Plan(plan) => plan.run(),
            Command::Keys(keys) => keys.run(),
            Command::Completions(completions) => completions.run(),
            Command::Man(man) => man.run(),
        }
    }
}

/// Returns true if nobody reads standard output any more.
fn is_unread(error: &anyhow::Error) -> bool {
    let cause = match error.downcast_ref() {
        Some(client::Error::Output(cause)) => Some(cause),
        _ => error.downcast_ref::<io::Error>(),
    };
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

fn is_bad_usage(error: &anyhow::Error) -> bool {
    let is_clients =
        error.downcast_ref::<client::Error>().is_some_and(|it| matches!(it.root(), client::Error::Usage(_)));
    is_clients || error.is::<BadUsage>() || error.is::<config::Error>()
}

/// Arguments that can't be, whatever the database holds.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadUsage(String);

/// Prints what failed and why, on one line. A bad catalog has a line for each mistake; a refused export, an indented
/// one for each export that comes before it.
fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    // The text may hold names that others chose.
    for line in chain(error.as_ref()).lines() {
        eprintln!("{}{}", if line.starts_with(' ') { "" } else { "cdc-export: " }, plain(line));
    }
    ExitCode::from(code)
}
