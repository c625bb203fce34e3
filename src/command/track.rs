//! `track` and `untrack`: install and remove the capture of a table's changes.

use std::process::ExitCode;
use std::slice;

use crate::config::{CatalogFile, Config};
use crate::dataset::{Capture, Dataset, Table};
use crate::postgres::Database;
use crate::source::capture::tracking::{self, Tracked};
use crate::source::capture::untracking;
use crate::source::catalog_check;
use crate::store::Store;
use crate::store::tracked::Tracking;
use crate::telemetry::chain;
use clap::Args;

use crate::command::catalog::{check_some, named_dataset};
use crate::command::database_handle::{CreateMissing, with_database, with_tables_after_check};
use crate::command::start::{Logs, block_on, settings};

/// The dataset whose changes to capture.
#[derive(Args)]
pub(crate) struct Track {
    /// The name of the dataset
    dataset: String,
}

impl Track {
    /// Installs the capture of the table's changes.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let config = settings(CatalogFile::Read, Logs::Errors)?;
        block_on(async {
            let dataset = named_dataset(&config, &self.dataset)?;
            let datasets = slice::from_ref(dataset);
            let track = async |database: &_| {
                check_some(&config, database, datasets).await?;
                let (name, table) = (&dataset.name, &dataset.table);
                let pool = database.pool(1);
                match tracking::track(&pool, dataset).await? {
                    Tracked::Now => {
                        outln!("The changes of {table} are captured from now on: `{name}` can be exported.")?
                    }
                    Tracked::Before => outln!("The changes of {table} were captured already: nothing has changed.")?,
                }
                let stalling = catalog_check::stalling(&pool, datasets).await?;
                stalling.iter().for_each(|fault| eprintln!("cdc-export: {fault}"));
                Ok(())
            };
            with_tables_after_check(async |database| check_some(&config, database, datasets).await, &config, track)
                .await
        })
    }
}

/// The tables whose capture to remove.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Untrack {
    /// The name of the dataset
    dataset: Option<String>,
    /// A table, such as `orders` or `sales.orders`, with or without a dataset
    #[arg(long)]
    table: Option<Table>,
    /// All tables that have the triggers of `track`
    #[arg(long)]
    all: bool,
}

impl Untrack {
    /// Removes the capture of the dataset's table, of the named table, or of all tables.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let config = settings(CatalogFile::Read, Logs::Errors)?;
        block_on(async {
            let dataset = self.dataset.as_deref().map(|name| named_dataset(&config, name)).transpose()?;
            with_database(&config, CreateMissing::Nothing, async |database| match (dataset, &self.table) {
                (Some(dataset), _) => untrack_dataset(&config, database, dataset).await,
                (None, Some(table)) => match untracking::untrack_table(&database.pool(1), table).await? {
                    true => outln!("The changes of {table} are no longer captured."),
                    false => outln!("{table} was not tracked: nothing has changed."),
                },
                (None, None) => untrack_all(database).await,
            })
            .await
        })
    }
}

async fn untrack_dataset(config: &Config, database: &Database, dataset: &Dataset) -> anyhow::Result<()> {
    let pool = database.pool(1);
    let before = Store::new(pool.clone()).check_table(dataset).await?.tracking;
    untracking::untrack(&pool, dataset, &config.catalog).await?;
    let (name, table) = (&dataset.name, &dataset.table);
    if before == Tracking::Untracked {
        return outln!("`{name}` was not tracked: nothing has changed.");
    }
    if dataset.capture != Capture::Triggers {
        return outln!("The changes of {table} are no longer captured: `{name}` finds them by their times.");
    }
    outln!(
        "The changes of {table} are no longer captured: `{name}` can't be exported until `cdc-export track {name}`, and then \
         begins with a full export for each consumer."
    )
}

/// Removes the capture of all tables. Skips a table that can't be locked or changed, and names it in the final error.
async fn untrack_all(database: &Database) -> anyhow::Result<()> {
    let (mut failed, mut is_any) = (Vec::new(), false);
    for (table, untracked) in untracking::untrack_all(&database.pool(1)).await? {
        is_any = true;
        match untracked {
            Ok(()) => outln!("The changes of {table} are no longer captured.")?,
            Err(error) => failed.push(format!("{table}: {}", chain(&error))),
        }
    }
    if !is_any {
        outln!("No table was tracked: nothing has changed.")?;
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}
