//! `completions`: prints a script by which a shell completes the commands.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::command::CommandLine;

/// The shell that completes the commands.
#[derive(Args)]
pub(crate) struct Completions {
    /// Your shell
    shell: Shell,
}

impl Completions {
    /// Prints the shell's script. Generates the whole script before it prints anything.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut CommandLine::command(), "cdc-export", &mut script);
        outln!("{}", String::from_utf8(script)?.trim_end()).map(|()| ExitCode::SUCCESS)
    }
}
