//! `completions`: what makes a shell complete the commands.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::command::CommandLine;

/// The shell that is to complete the commands.
#[derive(Args)]
pub(crate) struct Completions {
    /// Your shell
    shell: Shell,
}

impl Completions {
    /// Prints the shell's script, whole or not at all.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut CommandLine::command(), "cdc-export", &mut script);
        outln!("{}", String::from_utf8(script)?.trim_end()).map(|()| ExitCode::SUCCESS)
    }
}
