//! `man`: writes man pages of the commands, generated from their help texts.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory};

use crate::command::CommandLine;

/// The folder of the man pages.
#[derive(Args)]
pub(crate) struct Man {
    /// The folder; it is created if it is missing
    folder: PathBuf,
}

impl Man {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let in_folder = || self.folder.display().to_string();
        fs::create_dir_all(&self.folder).with_context(in_folder)?;
        clap_mangen::generate_to(CommandLine::command(), &self.folder).with_context(in_folder)?;
        Ok(ExitCode::SUCCESS)
    }
}
