//! Keeps the catalog of a running process current: reads the operator's file again when it changes, and looks for new
//! tables of its patterns.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::catalog::current::CurrentCatalog;
use crate::command::catalog::{check_blocks, expanded_for_service};
use crate::config::{self, Config};
use crate::postgres::Database;
use crate::receiver::Receivers;
use crate::store::Store;
use crate::telemetry::metrics;
use cdc_capture::capture::{self, Triggers};
use pg_session::failure::chain;

const FILE_PERIOD: Duration = Duration::from_secs(5);

/// The time for which a changed file must stay the same. An editor may write it in pieces.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// The pause between two looks for tables of patterns.
const TABLES_PERIOD: Duration = Duration::from_secs(60);

const MAX_NAMED: usize = 10;

/// The file and the database of a catalog in force.
pub(super) struct Reload {
    catalog: CurrentCatalog,
    file: Option<PathBuf>,
    database: Database,
    /// The text that was read last, in force or not.
    text: String,
    /// The text whose receivers this process has.
    receivers_text: String,
    has_mask_secret: bool,
    /// The datasets whose tables the last look would have tracked, each with the state of its table.
    seen: BTreeMap<String, String>,
}

impl Reload {
    /// Puts the datasets of patterns in force, and records all datasets of this process.
    pub(super) async fn begin(config: &Config, database: &Database) -> anyhow::Result<Reload> {
        let text = config.catalog.get().text().unwrap_or_default().to_owned();
        let (catalog, file, receivers_text) = (config.catalog.clone(), config.catalog_file.clone(), text.clone());
        let has_mask_secret = config.worker.mask_secret.is_some();
        let (database, seen) = (database.clone(), BTreeMap::new());
        let reload = Reload { catalog, file, database, text, receivers_text, has_mask_secret, seen };
        reload.put_in_force(&config.catalog.get()).await?;
        reload.age_other_datasets(&config.catalog.get()).await?;
        Ok(reload)
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let (file_period, tables_period) =
            (failpoint::time("reload.file", FILE_PERIOD), failpoint::time("reload.tables", TABLES_PERIOD));
        let mut looked = Instant::now();
        loop {
            // The workers need the connections of the start. So each look opens one of its own, which is closed here.
            self.database = self.database.with_pool_of(1);
            let was_asked = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = hangup.recv() => true,
                () = sleep(file_period) => false,
            };
            let is_time_to_look = was_asked || looked.elapsed() >= tables_period;
            let round = async {
                // The tables that the file doesn't fit may have changed.
                self.read_file(was_asked || is_time_to_look && self.catalog.stale().is_some()).await;
                if is_time_to_look {
                    self.look().await;
                    looked = Instant::now();
                }
            };
            // A database or a disk that doesn't answer must not keep the process from ending.
            tokio::select! { () = shutdown.cancelled() => return Ok(()), () = round => {} }
        }
    }

    /// Reads the file, and puts it in force if it has changed. With `at_once`, also if it hasn't, and without a second
    /// reading.
    async fn read_file(&mut self, at_once: bool) {
        let Some(file) = self.file.clone() else { return };
        let text = match read(&file).await {
            Ok(text) if text == self.text && !at_once => return,
            Ok(text) if at_once => text,
            Ok(text) => {
                sleep(failpoint::time("reload.quiet", QUIET_TIME)).await;
                // It changes still, or again.
                match read(&file).await {
                    Ok(again) if again == text => text,
                    Ok(_) | Err(_) => return,
                }
            }
            Err(error) => return self.refuse(&error),
        };
        match self.reload(&file, &text).await {
            Ok(()) => self.text = text,
            Err(error) => {
                self.refuse(&error);
                // A mistake of the text needs another text. Any other failure may pass.
                if error.is::<config::Error>() {
                    self.text = text;
                }
            }
        }
    }

    /// Says that the file is not in force, unless that was the last thing said.
    fn refuse(&self, error: &anyhow::Error) {
        let told = chain(error.as_ref());
        // Health checks show it, so it has no path and no cause of Postgres.
        let why = match error.downcast_ref() {
            Some(config::Error::Catalog { mistakes, .. }) => mistakes.to_string(),
            _ => "the log says why".to_owned(),
        };
        if self.catalog.set_stale(Some(&why)) {
            let error = told;
            tracing::error!(
                event = "datasets_reload_failed",
                error,
                "the datasets file has changed and is not in force"
            );
        }
    }

    async fn reload(&self, file: &Path, text: &str) -> anyhow::Result<()> {
        let (catalog, _) = config::operator::read_catalog(file, text)?;
        // In force all the same: the old file would leave columns unmasked.
        if let Some(error) = config::operator::missing_mask_secret(&catalog, self.has_mask_secret) {
            tracing::error!(event = "mask_secret_missing", error, "exports of datasets with such a mask fail");
        }
        // Their secrets are in the environment of the process, which doesn't change.
        let receivers_changed = Receivers::differ(&self.receivers_text, text);
        let catalog = catalog.with_listeners_of(&self.catalog.get());
        check_blocks(file, &catalog, &self.database).await?;
        self.put_in_force(&catalog).await?;
        self.catalog.set_stale(None);
        let (datasets, schedules) = (self.catalog.get().dataset_names().len(), catalog.schedules().len());
        tracing::info!(event = "datasets_reloaded", datasets, schedules);
        if receivers_changed {
            tracing::warn!(
                event = "receivers_changed",
                "the receivers in the datasets file have changed: that takes effect when the service starts again"
            );
        }
        catalog.schedules().iter().for_each(|schedule| metrics::init_schedule(&schedule.name));
        Ok(())
    }

    /// Looks for tables that patterns match now, and tracks new ones.
    async fn look(&mut self) {
        let looked = async {
            self.put_in_force(&self.catalog.get()).await?;
            self.track_new().await
        };
        if let Err(error) = looked.await {
            tracing::warn!(event = "tables_not_looked_at", error = chain(error.as_ref()));
        }
    }

    /// Tracks the tables of patterns with `track = true` that two looks found unchanged and free. A busy one is tried
    /// again at the next look.
    async fn track_new(&mut self) -> anyhow::Result<()> {
        let catalog = self.catalog.get();
        let datasets: Vec<_> = catalog.of_patterns().map(|dataset| &**dataset).filter(|it| it.tracks).collect();
        let (before, mut failed) = (std::mem::take(&mut self.seen), BTreeMap::new());
        let pool = self.database.pool();
        if datasets.is_empty() || Store::new(pool.clone()).is_restored().await? {
            return Ok(());
        }
        for (dataset, state) in Triggers(&pool).trackable(&datasets).await? {
            let name = dataset.name.clone();
            if before.get(&name) == Some(&state)
                && let Err(error) = Triggers(&pool).track_once(dataset).await
                && !matches!(error, capture::Error::Busy { .. })
            {
                failed.insert(name.clone(), error.to_string());
            }
            self.seen.insert(name, state);
        }
        if self.catalog.set_untrackable(failed.clone()) {
            for (dataset, error) in failed {
                tracing::warn!(event = "table_not_tracked", dataset, error);
            }
        }
        Ok(())
    }

    /// Puts a catalog in force, with the datasets of its patterns.
    async fn put_in_force(&self, catalog: &Catalog) -> anyhow::Result<()> {
        let before = self.catalog.get();
        let catalog = expanded_for_service(catalog, &self.database).await.with_context(|| self.database.to_string())?;
        if !catalog.has_same_datasets(&before) {
            self.age_other_datasets(&catalog).await?;
            self.catalog.replace(Arc::new(catalog.clone()));
        }
        let of_patterns =
            |catalog: &Catalog| catalog.of_patterns().map(|dataset| dataset.name.clone()).collect::<BTreeSet<_>>();
        let (had, has) = (of_patterns(&before), of_patterns(&catalog));
        let added = missing_in(&had, &has);
        if !added.is_empty() {
            tracing::info!(event = "tables_matched", datasets = has.len(), added);
        }
        let mut gone = BTreeMap::<String, BTreeSet<String>>::new();
        for name in had.difference(&has) {
            let why = catalog.why_gone(name, before.get(name).map(|dataset| &dataset.table));
            gone.entry(why).or_default().insert(name.clone());
        }
        for (why, names) in gone {
            let datasets = missing_in(&has, &names);
            tracing::warn!(event = "datasets_gone", datasets, "exports of these datasets are refused: {why}");
        }
        Ok(())
    }

    /// Lets the jobs of datasets fail that no process has any more.
    async fn age_other_datasets(&self, catalog: &Catalog) -> anyhow::Result<()> {
        Ok(Store::new(self.database.pool()).age_other_datasets(catalog.dataset_names()).await?)
    }
}

/// The first of the names that are not among the others.
fn missing_in(others: &BTreeSet<String>, names: &BTreeSet<String>) -> String {
    let missing: Vec<_> = names.difference(others).map(String::as_str).collect();
    match missing.len().checked_sub(MAX_NAMED) {
        None | Some(0) => missing.join(", "),
        Some(more) => format!("{} and {more} more", missing[..MAX_NAMED].join(", ")),
    }
}

async fn read(file: &Path) -> anyhow::Result<String> {
    let file = file.to_owned();
    Ok(spawn_blocking(move || config::operator::read_text(&file)).await??)
}
