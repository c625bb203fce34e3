//! `track` and `untrack`: install and remove the capture of a table's changes.

use std::process::ExitCode;
use std::sync::Arc;

use crate::config::{CatalogFile, Config};
use crate::postgres::Database;
use crate::store::Store;
use crate::store::tracked::Tracking;
use cdc_capture::capture::{Queue, Tracked, Triggers};
use cdc_capture::{Findings, capture};
use cdc_dataset::{Capture, Dataset};
use clap::Args;
use pg_session::failure::chain;
use pg_session::table_name::Table;

use crate::command::BadUsage;
use crate::command::catalog::{check_some, named_datasets};
use crate::command::database_handle::{CreateMissing, with_database, with_tables_after_check};
use crate::command::plain::plain;
use crate::command::start::{Logs, block_on, settings};

/// The datasets whose changes to capture.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Track {
    /// The names of the datasets
    #[arg(value_name = "DATASET")]
    datasets: Vec<String>,
    /// All datasets of the dataset file, except those with capture = "timestamp" or "none"
    #[arg(long)]
    all: bool,
}

impl Track {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let config = settings(CatalogFile::Read, Logs::Errors)?;
        block_on(async {
            let track = async |database: &_| {
                check_some(&config, database, &self.named(&config)?).await?;
                track_all(database, &self.named(&config)?).await?;
                if self.all {
                    outln!(
                        "A session that writes to these tables keeps about 300 kB of memory for each of them, until it ends."
                    )?;
                }
                Ok(())
            };
            let check = async |database: &_| check_some(&config, database, &self.named(&config)?).await;
            with_tables_after_check(check, &config, track).await
        })
    }

    /// Returns the datasets whose changes to capture, as the catalog in force has them.
    fn named(&self, config: &Config) -> Result<Vec<Arc<Dataset>>, BadUsage> {
        if !self.all {
            return named_datasets(config, &self.datasets);
        }
        let catalog = config.catalog.get();
        Ok(catalog.iter().filter(|dataset| dataset.capture == Capture::Triggers).cloned().collect())
    }
}

/// Installs the capture of each table. Skips a table that can't be captured, and names it in the final error.
async fn track_all(database: &Database, datasets: &[Arc<Dataset>]) -> anyhow::Result<()> {
    let pool = database.pool();
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    let mut queue = Queue::of(datasets.iter().cloned());
    while let Some((dataset, tracked)) = Triggers(&pool).track_next(&mut queue).await {
        let (name, table) = (&dataset.name, plain(&dataset.table.to_string()));
        match tracked {
            Ok(Tracked::Now) => {
                outln!("The changes of {table} are captured from now on: `{name}` can be exported.")?;
            }
            Ok(Tracked::Before) => outln!("The changes of {table} were captured already: nothing has changed.")?,
            Err(error) => {
                failed.push((name.clone(), error));
                continue;
            }
        }
        done.push(dataset);
    }
    let stalling = Findings::stalling(&pool, &done).await?;
    stalling.iter().for_each(|fault| eprintln!("cdc-export: {fault}"));
    refuse_failed(datasets.len(), failed)
}

/// Returns an error that names each dataset that failed, or the error of the only one.
fn refuse_failed(datasets: usize, mut failed: Vec<(String, capture::Error)>) -> anyhow::Result<()> {
    match failed.pop() {
        None => Ok(()),
        Some((_, only)) if datasets == 1 => Err(only.into()),
        Some(last) => {
            failed.push(last);
            let lines = failed.iter().map(|(name, error)| format!("{name}: {}", chain(error)));
            Err(anyhow::Error::msg(lines.collect::<Vec<_>>().join("\n")))
        }
    }
}

/// The tables whose capture to remove.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Untrack {
    /// The names of the datasets
    #[arg(value_name = "DATASET")]
    datasets: Vec<String>,
    /// A table, such as `orders` or `sales.orders`, with or without a dataset
    #[arg(long)]
    table: Option<Table>,
    /// All tables that have the triggers of `track`
    #[arg(long)]
    all: bool,
}

impl Untrack {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let config = settings(CatalogFile::Read, Logs::Errors)?;
        block_on(with_database(&config, CreateMissing::Nothing, async |database| match &self.table {
            Some(table) => match Triggers(&database.pool()).untrack_table(table).await? {
                true => outln!("The changes of {table} are no longer captured."),
                false => outln!("{table} was not tracked: nothing has changed."),
            },
            None if self.all => untrack_all(database).await,
            None => untrack_datasets(&config, database, &named_datasets(&config, &self.datasets)?).await,
        }))
    }
}

/// Removes the capture of these datasets' tables. Skips a table that can't be locked or changed, and names it in the
/// final error.
async fn untrack_datasets(config: &Config, database: &Database, datasets: &[Arc<Dataset>]) -> anyhow::Result<()> {
    let pool = database.pool();
    let store = Store::new(pool.clone());
    let mut before = Vec::new();
    for dataset in datasets {
        before.push(store.check_table(dataset).await?.tracking);
    }
    let mut failed = Vec::new();
    let untracked = Triggers(&pool).untrack(datasets, config.catalog.get().datasets()).await?;
    for ((dataset, before), untracked) in datasets.iter().zip(before).zip(untracked) {
        let (name, table) = (&dataset.name, plain(&dataset.table.to_string()));
        match untracked {
            Err(error) => failed.push((name.clone(), error)),
            Ok(()) if before == Tracking::Untracked => outln!("`{name}` was not tracked: nothing has changed.")?,
            Ok(()) if dataset.capture != Capture::Triggers => {
                outln!("The changes of {table} are no longer captured: `{name}` needs no triggers.")?;
            }
            Ok(()) => outln!(
                "The changes of {table} are no longer captured: `{name}` can't be exported until `cdc-export track {name}`, and then \
                 begins with a full export for each consumer."
            )?,
        }
    }
    refuse_failed(datasets.len(), failed)
}

/// Removes the capture of all tables. Skips a table that can't be locked or changed, and names it in the final error.
async fn untrack_all(database: &Database) -> anyhow::Result<()> {
    let (mut failed, mut is_any) = (Vec::new(), false);
    for (table, untracked) in Triggers(&database.pool()).untrack_all().await? {
        is_any = true;
        let table = plain(&table.to_string());
        match untracked {
            Ok(()) => outln!("The changes of {table} are no longer captured.")?,
            Err(error) => failed.push(format!("{table}: {}", chain(&error))),
        }
    }
    if !is_any {
        outln!("No table has triggers of `cdc-export track`.")?;
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}
