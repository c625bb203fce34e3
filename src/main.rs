//! The command line: its parser, and the process's exit code. Only the binary prints for people and uses anyhow.

mod command;

use std::io;
use std::process::ExitCode;

use cdc_export::config;
use clap::Parser;

use crate::command::{BadUsage, Command};

/// Hands a table's rows to downstream consumers as files, with nothing lost and nothing twice.
///
/// Settings come from the environment and from `.env`; `.env.example` lists them all.
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
}

/// Exit codes are 0: done; 1: failed; 2: bad usage, which clap reports by itself, or a bad setting or catalog.
fn main() -> ExitCode {
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
