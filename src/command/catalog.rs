//! Access of the commands to the catalog: finds a dataset by its name, and refuses datasets that don't fit their
//! tables.

use std::path::Path;
use std::sync::Arc;

use crate::catalog::Catalog;
use crate::config::{self, Config};
use crate::postgres::Database;
use crate::store::Store;
use cdc_capture::{Candidate, Findings};
use cdc_dataset::{Dataset, Faults};

use crate::command::BadUsage;

/// Puts the catalog in force with the datasets of its patterns, for a command that only reads.
pub(super) async fn expand(config: &Config, database: &Database) -> anyhow::Result<()> {
    let catalog = config.catalog.get();
    if catalog.has_patterns() {
        let (catalog, _) = expanded(&catalog, database).await?;
        config.catalog.replace(Arc::new(catalog));
    }
    Ok(())
}

/// Returns a catalog with the datasets of its patterns, for a process that has them from now on. Records all its
/// datasets, so that no pattern gives their names to other tables.
pub(super) async fn expanded_for_service(catalog: &Catalog, database: &Database) -> anyhow::Result<Catalog> {
    let (catalog, relations) = expanded(catalog, database).await?;
    Store::new(database.pool()).record_datasets(&catalog.located(&relations)).await?;
    Ok(catalog)
}

/// Returns a catalog with the datasets of its patterns, and the relations that were found.
async fn expanded(catalog: &Catalog, database: &Database) -> anyhow::Result<(Catalog, Vec<Candidate>)> {
    let pool = database.pool();
    let relations = Candidate::read(&pool, catalog.datasets(), catalog.deleted_columns()).await?;
    let used = Store::new(pool.clone()).used_names().await?;
    Ok((catalog.expanded(&relations, &used), relations))
}

pub(super) async fn check_blocks(file: &Path, catalog: &Catalog, database: &Database) -> anyhow::Result<()> {
    // Without relations, patterns make no datasets.
    let blocks = catalog.expanded(&[], &Default::default());
    let found = Findings::check(&database.pool(), blocks.datasets(), &blocks.left_out_tables()).await?;
    refuse_faults(catalog, file, found.faults)
}

pub(super) fn named_dataset(config: &Config, name: &str) -> Result<Arc<Dataset>, BadUsage> {
    config.catalog.get().named(name).cloned().map_err(|why| BadUsage(format!("{name}: {why}")))
}

pub(super) fn named_datasets(config: &Config, names: &[String]) -> Result<Vec<Arc<Dataset>>, BadUsage> {
    let mut datasets: Vec<Arc<Dataset>> = Vec::new();
    for name in names {
        let dataset = named_dataset(config, name)?;
        if datasets.iter().all(|other| other.name != dataset.name) {
            datasets.push(dataset);
        }
    }
    Ok(datasets)
}

/// Returns the dataset with this name, or the default dataset if `name` is `None`.
pub(super) fn named_or_implied(config: &Config, name: Option<&str>) -> Result<Arc<Dataset>, BadUsage> {
    match name {
        Some(name) => named_dataset(config, name),
        None => config.catalog.get().implied().cloned().map_err(|why| BadUsage(why.to_string())),
    }
}

/// Checks datasets of the file against their tables. Ignores the other datasets, whose tables may be missing.
pub(super) async fn check_some(config: &Config, database: &Database, datasets: &[Arc<Dataset>]) -> anyhow::Result<()> {
    let Some(file) = &config.catalog_file else { return Ok(()) };
    let catalog = config.catalog.get();
    refuse_faults(&catalog, file, Findings::check_some(&database.pool(), catalog.datasets(), datasets).await?)
}

/// Returns a hint to remove the triggers of a table that has no dataset. The name is quoted for a shell: the table's
/// owner chose it, and the user may paste the command.
pub(super) fn untrack_hint(table: &str) -> String {
    let name = shlex::try_quote(table).expect("a name in Postgres has no NUL");
    format!(
        "its changes are captured, and no dataset needs them: `cdc-export untrack --table {name}` removes the triggers"
    )
}

/// Returns an error that lists the faults of a dataset file with their lines. Returns `Ok` if there are no faults.
pub(super) fn refuse_faults(catalog: &Catalog, file: &Path, faults: Faults) -> anyhow::Result<()> {
    if faults.0.is_empty() {
        return Ok(());
    }
    Err(config::Error::catalog(file, catalog.mistakes(faults)).into())
}
