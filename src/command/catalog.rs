//! Access of the commands to the catalog: finds a dataset by its name, and refuses datasets that don't fit their
//! tables.

use std::path::Path;
use std::sync::Arc;

use crate::config::{self, Config};
use crate::dataset::fault::Faults;
use crate::dataset::{Dataset, Table};
use crate::postgres::Database;
use crate::source::catalog_check;

use crate::command::BadUsage;

/// Returns the dataset with this name.
pub(super) fn named_dataset<'c>(config: &'c Config, name: &str) -> Result<&'c Arc<Dataset>, BadUsage> {
    config.catalog.named(name).map_err(|why| BadUsage(format!("{name}: {why}")))
}

/// Returns the datasets with these names, each once.
pub(super) fn named_datasets(config: &Config, names: &[String]) -> Result<Vec<Arc<Dataset>>, BadUsage> {
    let mut datasets: Vec<Arc<Dataset>> = Vec::new();
    for name in names {
        let dataset = named_dataset(config, name)?;
        if datasets.iter().all(|other| other.name != dataset.name) {
            datasets.push(Arc::clone(dataset));
        }
    }
    Ok(datasets)
}

/// Returns the dataset with this name, or the default dataset if `name` is `None`.
pub(super) fn named_or_implied<'c>(config: &'c Config, name: Option<&str>) -> Result<&'c Arc<Dataset>, BadUsage> {
    match name {
        Some(name) => named_dataset(config, name),
        None => config.catalog.implied().map_err(|why| BadUsage(why.to_string())),
    }
}

/// Checks datasets of the file against their tables. Ignores the other datasets, whose tables may be missing.
pub(super) async fn check_some(config: &Config, database: &Database, datasets: &[Arc<Dataset>]) -> anyhow::Result<()> {
    let Some(file) = &config.catalog_file else { return Ok(()) };
    refuse_faults(config, file, catalog_check::check_some(&database.pool(1), &config.catalog, datasets).await?)
}

/// Returns a hint to remove the triggers of a table that has no dataset. The name is quoted for a shell: the table's
/// owner chose it, and the user may paste the command.
pub(super) fn untrack_hint(table: &Table) -> String {
    let name = table.to_string();
    let name = shlex::try_quote(&name).expect("a name in Postgres has no NUL");
    format!(
        "its changes are captured, and no dataset needs them: `cdc-export untrack --table {name}` removes the triggers"
    )
}

/// Returns an error that lists the faults of a dataset file with their lines. Returns `Ok` if there are no faults.
pub(super) fn refuse_faults(config: &Config, file: &Path, faults: Faults) -> anyhow::Result<()> {
    if faults.0.is_empty() {
        return Ok(());
    }
    Err(config::Error::catalog(file, config.catalog.mistakes(faults)).into())
}
