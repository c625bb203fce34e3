//! `track` and `untrack`: capture of a table's changes, installed and removed.

use std::process::ExitCode;

use crate::config::CatalogFile;
use crate::dataset::Capture;
use crate::source::capture::tracking::{self, Tracked};
use crate::store::Store;
use crate::store::tracked::Tracking;
use clap::Args;

use crate::command::catalog::{check_one, dataset_of};
use crate::command::database_handle::{Makes, with_database, with_tables_after};
use crate::command::start::{Logs, block_on, settings};

/// The dataset whose changes to capture, or to capture no longer.
#[derive(Args)]
pub(crate) struct Track {
    /// The name of the dataset
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
                let (name, table) = (&dataset.name, &dataset.table);
                match tracking::track(&database.pool(1), dataset).await? {
                    Tracked::Now => {
                        outln!("The changes of {table} are captured from now on: `{name}` can be exported.")
                    }
                    Tracked::Before => outln!("The changes of {table} were captured already: nothing has changed."),
                }
            };
            with_tables_after(async |database| check_one(&config, database, dataset).await, &config, track).await
        })
    }

    /// Removes the capture of the dataset's table.
    pub(crate) fn run_untrack(self) -> anyhow::Result<ExitCode> {
        let config = settings(CatalogFile::Read, Logs::Errors)?;
        block_on(async {
            let dataset = dataset_of(&config, &self.dataset)?;
            with_database(&config, Makes::Nothing, async |database| {
                let pool = database.pool(1);
                let before = Store::new(pool.clone()).standing(dataset).await?.tracking;
                tracking::untrack(&pool, dataset, &config.catalog).await?;
                let (name, table) = (&dataset.name, &dataset.table);
                if before == Tracking::Untracked {
                    return outln!("`{name}` was not tracked: nothing has changed.");
                }
                if dataset.capture != Capture::Triggers {
                    return outln!("The changes of {table} are captured no longer: `{name}` finds them by their times.");
                }
                outln!(
                    "The changes of {table} are captured no longer: `{name}` can't be exported until `cdc-export track {name}`, and then \
                     begins with a full export for each consumer."
                )
            })
            .await
        })
    }
}
