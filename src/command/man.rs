//! `man`: the man pages of the commands, made of their help.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory};

use crate::command::CommandLine;

/// Where the man pages go.
#[derive(Args)]
pub(crate) struct Man {
    /// The folder; it is made if it isn't there
    folder: PathBuf,
}

impl Man {
    /// Writes a page for each command.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let in_folder = || self.folder.display().to_string();
        fs::create_dir_all(&self.folder).with_context(in_folder)?;
        clap_mangen::generate_to(CommandLine::command(), &self.folder).with_context(in_folder)?;
        Ok(ExitCode::SUCCESS)
    }
}
