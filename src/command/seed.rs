//! `seed`: adds users to the demo's table.

use std::process::ExitCode;

use crate::config::CatalogFile;
use crate::demo;
use clap::Args;

use crate::command::database_handle::{Makes, with_database};
use crate::command::start::{Logs, block_on, settings};
use crate::command::terminal::bar_of_rows;

/// How many users to add.
#[derive(Args)]
pub(crate) struct Seed {
    /// Add users until the table has this many
    #[arg(long)]
    rows: u64,
}

impl Seed {
    /// Adds users to the demo table until it has as many.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let config = settings(CatalogFile::Unread, Logs::Errors)?;
        block_on(with_database(&config, Makes::Server, async |database| {
            let bar = bar_of_rows(self.rows);
            let inserted = demo::top_up(&database.pool(1), self.rows, |inserted| bar.set_position(inserted)).await?;
            bar.finish_and_clear();
            match inserted {
                0 => outln!("0 users added: the demo table has {} or more.", self.rows),
                _ => outln!("{inserted} users added: the demo table has {} now.", self.rows),
            }
        }))
    }
}
