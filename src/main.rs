//! The command line: what may be asked for, and how it ends. The commands wire the rooms; they are the only ones that print for
//! people, and the only users of anyhow.

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

/// 0: done. 1: failed. 2: bad usage, which clap says by itself, or a bad setting, the catalog among them.
fn main() -> ExitCode {
    let CommandLine { command } = CommandLine::parse();
    match command.unwrap_or_default().run() {
        Ok(code) => code,
        // Whoever reads has seen enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|why| why.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) if error.is::<BadUsage>() || error.is::<config::Error>() => fail(2, &error),
        Err(error) => fail(1, &error),
    }
}

/// One line: what failed and why. Of a catalog a line for each mistake, and one for each export that comes before a refused one.
fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    // Names of others' may be in it, and a terminal obeys control characters.
    let plain = |letter: char| letter == '\n' || !letter.is_control();
    let text = format!("{error:#}");
    let text: String = text
        .chars()
        .map(|letter| if plain(letter) { letter.to_string() } else { letter.escape_default().to_string() })
        .collect();
    eprintln!("cdc-export: {text}");
    ExitCode::from(code)
}
