//! The command line: its parser, the commands and the process's exit code. Each command has its arguments and its `run` in a file of its
//! own. Only this module prints for people and uses anyhow.

/// Prints a line as `println!` does, but returns an error where standard output is closed, as by `head`; `main` takes that for
/// success.
macro_rules! outln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($text)*).map_err(anyhow::Error::from)
    }};
}

mod backend;
mod catalog;
mod client;
mod completions;
mod database_handle;
mod datasets;
mod download;
mod export;
mod healthcheck;
mod keys;
mod migrate;
mod output;
mod plan;
mod progress;
mod seed;
mod serve;
mod signals;
mod start;
mod status;
mod track;
mod wiring;
mod words;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::command::completions::Completions;
use crate::command::datasets::Datasets;
use crate::command::download::Download;
use crate::command::export::Export;
use crate::command::keys::Keys;
use crate::command::plan::Plan;
use crate::command::seed::Seed;
use crate::command::serve::Serve;
use crate::command::status::Status;
use crate::command::track::Track;
use crate::config;

/// Hands a table's rows to downstream consumers as files, with nothing lost and nothing twice.
///
/// Settings come from the environment and from `.env`; `.env.example` lists them all.
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
}

/// Runs what the process was asked for. Exit codes are 0: done; 1: failed; 2: bad usage, which clap reports by itself, or a bad setting or catalog.
pub fn main() -> ExitCode {
    let CommandLine { command } = CommandLine::parse();
    match command.unwrap_or_default().run() {
        Ok(code) => code,
        // The reader of our standard output has closed it, as `head` does.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|why| why.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) if error.is::<BadUsage>() || error.is::<config::Error>() => fail(2, &error),
        Err(error) => fail(1, &error),
    }
}

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
    Seed(Seed),
    /// Export a consumer's rows to a file, and wait for it
    Export(Export),
    /// Show consumers and open jobs
    Status(Status),
    /// Fetch the file of a completed export, and check it
    Download(Download),
    /// Ask the service on HOST and PORT whether it is ready
    Healthcheck,
    /// Capture the changes of a table that was there before, and let it be exported
    Track(Track),
    /// Remove what `track` installed; the table can't be exported any more
    Untrack(Track),
    /// Look at what may be exported
    #[command(subcommand)]
    Datasets(Datasets),
    /// Show what an export would read: rows, bytes, and Postgres's plan
    Plan(Plan),
    /// Make, list and revoke the keys of the API
    #[command(subcommand)]
    Keys(Keys),
    /// Print what makes a shell complete these commands
    Completions(Completions),
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
            Command::Download(download) => download.run(),
            Command::Healthcheck => healthcheck::run(),
            Command::Track(track) => track.run(),
            Command::Untrack(track) => track.run_untrack(),
            Command::Datasets(datasets) => datasets.run(),
            Command::Plan(plan) => plan.run(),
            Command::Keys(keys) => keys.run(),
            Command::Completions(completions) => completions.run(),
        }
    }
}

/// Arguments that can't be, whatever the database holds.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadUsage(String);

/// Prints what failed and why, on one line. A bad catalog has a line for each mistake; a refused export, one for each export that
/// comes before it.
fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    // The text may hold names that others chose, and a terminal obeys control characters.
    let plain = |letter: char| letter == '\n' || !letter.is_control();
    let text = format!("{error:#}");
    let text: String = text
        .chars()
        .map(|letter| if plain(letter) { letter.to_string() } else { letter.escape_default().to_string() })
        .collect();
    eprintln!("cdc-export: {text}");
    ExitCode::from(code)
}
