//! The command line: what may be asked for, and how it ends. The commands wire the rooms; they are the only ones that print for
//! people, and the only users of anyhow.

mod command;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use cdc_export::config::{self, Config};
use cdc_export::telemetry;
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

/// 0: done. 1: failed. 2: bad usage, which clap says by itself, or a bad setting, the catalogue among them.
fn main() -> ExitCode {
    let CommandLine { command } = CommandLine::parse();
    let command = command.unwrap_or_default();
    let config = match Config::from_env(command.catalogue()) {
        Ok(config) => config,
        Err(error) => return fail(2, &error.into()),
    };
    telemetry::start(&command.telemetry(&config));
    match run(command, config) {
        Ok(code) => code,
        // Whoever reads has seen enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|why| why.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) if error.is::<BadUsage>() || error.is::<config::Error>() => fail(2, &error),
        Err(error) => fail(1, &error),
    }
}

/// One line: what failed and why. Of a catalogue a line for each mistake.
fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("cdc-export: {error:#}");
    ExitCode::from(code)
}

fn run(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    #[cfg(debug_assertions)]
    if let Some(list) = &config.failpoints {
        cdc_export::failpoint::arm(list)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(command.run(config));
    // A thread that a dead disk holds up would hold up the end of the process.
    runtime.shutdown_timeout(Duration::from_secs(3));
    done
}
