//! `track` and `untrack`: capture of a table's changes, installed and removed.

use std::process::ExitCode;

use crate::config::CatalogFile;
use crate::source::capture::tracking;
use clap::Args;

use crate::command::catalog::{check_one, dataset_of};
use crate::command::database_handle::with_database;
use crate::command::start::{Logs, block_on, settings};

/// The dataset whose changes to capture, or to capture no longer.
#[derive(Args)]
pub(crate) struct Track {
    /// The dataset whose table it is
    dataset: String,
}

impl Track {
    /// Captures the changes of the dataset's table from here on.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let config = settings(CatalogFile::Read, Logs::Errors)?;
        block_on(async {
            let dataset = dataset_of(&config, &self.dataset)?;
            let track = async |database: &_| {
                check_one(&config, database, dataset).await?;
                Ok(tracking::track(&database.pool(1), dataset).await?)
            };
            with_database(&config, track).await
        })
    }

    /// Removes the capture of the dataset's table.
    pub(crate) fn run_untrack(self) -> anyhow::Result<ExitCode> {
        let config = settings(CatalogFile::Read, Logs::Errors)?;
        block_on(async {
            let dataset = dataset_of(&config, &self.dataset)?;
            with_database(&config, async |database| {
                Ok(tracking::untrack(&database.pool(1), dataset, &config.catalog).await?)
            })
            .await
        })
    }
}
