//! The catalog as the commands use it: finding a dataset by its name, and refusing what doesn't fit the tables.

use std::path::Path;
use std::sync::Arc;

use crate::config::{self, Config};
use crate::dataset::fault::Faults;
use crate::dataset::{Dataset, Table};
use crate::postgres::Database;
use crate::source::catalog_check;

use crate::command::BadUsage;

/// The dataset of this name.
pub(super) fn dataset_of<'c>(config: &'c Config, name: &str) -> Result<&'c Arc<Dataset>, BadUsage> {
    config.catalog.named(name).map_err(|why| BadUsage(format!("{name}: {why}")))
}

/// The dataset of this name, or where none is named, the one that is meant then.
pub(super) fn named_or_implied<'c>(config: &'c Config, name: Option<&str>) -> Result<&'c Arc<Dataset>, BadUsage> {
    match name {
        Some(name) => dataset_of(config, name),
        None => config.catalog.implied().map_err(|why| BadUsage(why.to_string())),
    }
}

/// Checks one dataset of the file against its table. The tables of others may be gone, or not there yet.
pub(super) async fn check_one(config: &Config, database: &Database, dataset: &Dataset) -> anyhow::Result<()> {
    let Some(file) = &config.catalog_file else { return Ok(()) };
    refuse_faults(config, file, catalog_check::check_one(&database.pool(1), &config.catalog, dataset).await?)
}

/// Says of a table that has triggers and no dataset how to remove them. The name is quoted for a shell, because the
/// table's owner has chosen it, and a person may paste the command.
pub(super) fn captured_without_dataset(table: &Table) -> String {
    let name = table.to_string();
    let name = shlex::try_quote(&name).expect("a name in Postgres has no NUL");
    format!(
        "its changes are captured, and no dataset needs them: `cdc-export untrack --table {name}` removes the triggers"
    )
}

/// Says what is wrong with the datasets of a file, each with its line, if anything is.
pub(super) fn refuse_faults(config: &Config, file: &Path, faults: Faults) -> anyhow::Result<()> {
    if faults.0.is_empty() {
        return Ok(());
    }
    Err(config::Error::catalog(file, config.catalog.mistakes(faults)).into())
}
