//! `seed`: adds users to the demo's table.

use std::process::ExitCode;

use crate::config::CatalogFile;
use crate::demo;
use clap::Args;

use crate::command::database_handle::with_database;
use crate::command::progress::bar_of_rows;
use crate::command::start::{Logs, block_on, settings};

/// How many users to add.
#[derive(Args)]
pub(crate) struct Seed {
    /// How many users the table is to have
    #[arg(long)]
    rows: u64,
}

impl Seed {
    /// Adds users to the demo table until it has as many.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let config = settings(CatalogFile::Unread, Logs::Errors)?;
        block_on(with_database(&config, async |database| {
            let bar = bar_of_rows(self.rows);
            let inserted = demo::top_up(&database.pool(1), self.rows, |inserted| bar.set_position(inserted)).await?;
            bar.finish_and_clear();
            outln!("{inserted} users added.")
        }))
    }
}
