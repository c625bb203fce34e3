//! `seed`: adds users to the demo table.

use std::process::ExitCode;

use crate::config::CatalogFile;
use crate::demo;
use clap::Args;

use crate::command::database_handle::{CreateMissing, with_database};
use crate::command::start::{Logs, block_on, settings};
use crate::command::terminal::row_progress_bar;

/// The number of users.
#[derive(Args)]
pub(crate) struct Seed {
    /// Add users until the table has this many
    #[arg(long)]
    rows: u64,
}

impl Seed {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let config = settings(CatalogFile::Unread, Logs::Errors)?;
        block_on(with_database(&config, CreateMissing::Server, async |database| {
            let bar = row_progress_bar(self.rows);
            let inserted = demo::top_up(&database.pool(), self.rows, |inserted| bar.set_position(inserted)).await?;
            bar.finish_and_clear();
            match inserted {
                0 => outln!("0 users added: the demo table has {} or more.", self.rows),
                _ => outln!("{inserted} users added: the demo table has {} now.", self.rows),
            }
        }))
    }
}
