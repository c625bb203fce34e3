//! The operations of clients: request exports, list and cancel them, read their files, read and delete watermarks.
//!
//! Only `http` uses this module. It knows no status codes and runs no exports.

mod cached_reads;
pub mod consumers;
pub mod datasets_order;
pub mod deadline;
mod deliveries;
pub mod files;
mod followers;
mod jobs;
mod keys;
pub mod schedules;
mod scrape;
mod shares;

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::audit::{Action, Origin};
use crate::catalog::Catalog;
use crate::catalog::current::CurrentCatalog;
use crate::catalog::mistake::{SeveralDatasets, UnknownDataset};
use crate::catalog::pattern::LeftOut;
use crate::demo;
use crate::job::datasets::MOST_DATASETS;
use crate::job::{Bounds, Export, Status, Terms};
use crate::key::Prefix;
use crate::service::cached_reads::CachedReads;
use crate::service::consumers::LagKey;
use crate::service::deadline::{call_timeout, on_table, with_timeout};
use crate::service::followers::Followers;
use crate::service::keys::Keyring;
use crate::service::scrape::ReadCache;
use crate::store::probe::{OtherProcesses, Probe};
use crate::store::{self, Store};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics;
use cdc_capture::{self, ConsumerLag, LogUse, Source};
use cdc_dataset::{BadSelection, Dataset, Description, Faults, TableColumn};
use cdc_destination::{self, Destination, Limited};
use cdc_manifest::{ConsumerId, JobId, is_dataset_name};
use pg_session::failure::chain;
use pg_session::table_name::Table;

pub use cached_reads::CachedRead;
pub use followers::Subscriber;
pub use jobs::Cancellation;
pub use shares::{Share, Shares};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database is not available: {}", .0.class_of_outage())]
    DatabaseUnavailable(#[source] store::Error),
    /// Commits wait for a synchronous standby that is not there.
    #[error("{0}")]
    StandbyMissing(store::Error),
    /// Postgres responds but the role lacks a privilege on the service's objects.
    #[error("{0}")]
    DatabaseDenied(store::Error),
    /// Postgres rejected a statement, because of a defect or because someone changed the schema.
    #[error("the database refused a statement")]
    Database(#[source] store::Error),
    #[error("{0}")]
    NotReadable(cdc_capture::Error),
    /// The query of the table timed out or failed.
    #[error("the table can't be read now")]
    Table(Option<cdc_capture::Error>),
    #[error("the output folder or bucket has no room left")]
    OutputFull(#[source] cdc_destination::Error),
    #[error("the output folder or bucket can't be written")]
    OutputReadOnly(#[source] cdc_destination::Error),
    #[error("{0}")]
    OutputMissing(#[source] cdc_destination::Error),
    #[error("the output folder or bucket can't be used")]
    Output(#[source] cdc_destination::Error),
    #[error("this key is not known, or it was revoked or has expired")]
    NoKey,
    #[error("there is no export with this id")]
    NoJob,
    #[error("there is no delivery with this id")]
    NoDelivery,
    #[error("the receiver `{0}` is no longer in the operator's file, so the event cannot be delivered")]
    NoEndpoint(String),
    /// The demo table has no such user, or the service did not create that table.
    #[error("there is no user with this id")]
    NoUser,
    #[error("No watermark for this consumer")]
    NoWatermark,
    #[error(transparent)]
    NoDataset(#[from] UnknownDataset),
    /// `None` stands for an ad-hoc export.
    #[error("{}", match .0 {
        Some(consumer) => format!("this key is not for the consumer {consumer}"),
        None => "this key is for certain consumers: name one by X-Consumer-ID".to_owned(),
    })]
    ConsumerNotAllowed(Option<ConsumerId>),
    #[error("this key is not for the dataset {0}")]
    DatasetNotAllowed(String),
    #[error("there is no table `{table}` for the dataset `{dataset}`")]
    NoTable { dataset: String, table: String },
    #[error("{0}")]
    NotTracked(String),
    #[error("{}", cdc_capture::Error::FullOnly(.0.clone()))]
    FullOnly(String),
    #[error(transparent)]
    BadSelection(BadSelection),
    /// The selection would tell values of a masked column.
    #[error(transparent)]
    ColumnMasked(BadSelection),
    #[error("the table does not match the dataset's definition: {0}")]
    Mismatch(Faults),
    #[error("the export is {0}, so it has no file")]
    NoFile(Status),
    #[error("the export found nothing and was skipped, so it has no file")]
    Skipped,
    #[error("the file is in a folder of the service, so it has no URL: download it from /exports/{{jobId}}/download")]
    NoUrl,
    #[error("the export has {0} files: download each part from /exports/{{jobId}}/files/{{part}}/download")]
    SeveralFiles(usize),
    #[error("the export has {0} files, whose parts are numbered from 1")]
    NoPart(usize),
    #[error("it has no manifest, because it is an ad-hoc export or because retention removed the manifest")]
    NoManifest,
    #[error("the file of this export was removed or replaced: request a full export to continue")]
    FileGone,
    #[error("the file is in another OUTPUT_DIR, or on another host: if it is lost, request a full export to continue")]
    FileOnOtherHost,
    #[error("the file belongs to the database that this database was copied from: remove it there")]
    FileOfOtherDatabase,
    #[error("the export is {0}, so nobody can have loaded it")]
    NotPublished(Status),
    #[error("the export belongs to no consumer, so it cannot be acknowledged")]
    AdHoc,
    #[error("none of the datasets is ready: {0}")]
    NothingReady(&'static str),
    #[error("{0} datasets are ready, and a job has {MOST_DATASETS} at most: name them")]
    TooManyDatasets(usize),
    #[error("after: `{0}` is none of the datasets")]
    AfterUnknown(String),
    /// The call is for one export, and the job has several that the caller may see: those of these datasets.
    #[error("the job has exports of several datasets: name one by the parameter `dataset`, of {}", .0.join(", "))]
    SeveralDatasets(Vec<String>),
    /// The job has no export of this dataset, or the caller may not see it.
    #[error(
        "the job has no export of the dataset `{0}`, or it was removed: one that found nothing is kept for a minute"
    )]
    NoExport(String),
    /// The read of the tables failed, which several calls may share.
    #[error(transparent)]
    Tables(Arc<Error>),
    #[error("the export is being committed")]
    Committing,
    #[error("the export is {0}, so its file can't be removed yet")]
    Open(Status),
    /// The consumer has never asked for an export, or was removed.
    #[error("there is no consumer `{0}`")]
    NoConsumer(ConsumerId),
    #[error("an export of `{0}` has not ended: wait for it, or cancel it")]
    ConsumerOpen(ConsumerId),
    #[error("the export is {0} already")]
    Ended(Status),
    #[error("the export is {0}: only a failed or cancelled one can be retried")]
    NotToRetry(Status),
    /// The idempotency key was used for another request, which created this job. `None` if the caller may not see it.
    #[error("this key was sent with another request{}", .0.map(|id| format!(", which created the export {id}")).unwrap_or_default())]
    KeyTaken(Option<JobId>),
    #[error("too many clients follow or wait for exports, with this key, from this address or in total")]
    TooManyFollowers,
    /// The caller's `after` is not the last export of its lane. Contains the dataset if the request has `datasets`, the
    /// exports published since, and then the open ones.
    #[error("{}{}", .0.as_ref().map(|dataset| format!("{dataset}: ")).unwrap_or_default(), out_of_step_detail(.1))]
    OutOfStep(Option<String>, Vec<Export>),
    #[error(
        "the database contains no completed export of this consumer and dataset with the id and content in `after`, or misses a later one: \
         if all three are right, it was restored, or retention removed the exports; request a full export to continue"
    )]
    Restored,
    /// The lane, or the caller's key in an ad-hoc dataset, has reached its maximum of open jobs.
    #[error("{0} exports of this consumer and dataset are open, the maximum: wait for some to end")]
    TooManyOpen(i64),
    #[error("{0} exports that this key asked for are open, half as many as may be added: wait for some to end")]
    KeyFull(u32),
    #[error("{0} exports are open, the maximum of all consumers: wait for some to end")]
    QueueFull(u32),
}

/// Returns the result of a health check, which all calls share. So a flood of calls causes one check a second.
async fn checked<T: Clone + Send + Sync + 'static>(
    cache: &CachedReads<(), Result<T, Arc<Error>>>,
    check: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Arc<Error>> {
    let cache_time = failpoint::time("service.checks", CHECK_CACHE_TIME);
    let check = async move { Ok(check.await.map_err(Arc::new)) };
    cache.get((), cache_time, Some(Utc::now() - MAX_CHECK_AGE), check).await?.value
}

/// Describes which exports an out-of-step caller must load before its next request.
fn out_of_step_detail(exports: &[Export]) -> String {
    let open = exports.iter().filter(|export| !export.status.is_terminal()).count();
    format!(
        "`after` is not the consumer's last export: {} published since, {open} open; load the published ones in order, \
         wait for the open ones and load those that complete, and then repeat the request",
        exports.len() - open
    )
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Error {
        match error {
            store::Error::Unavailable(_) | store::Error::LockConflict(_) => Error::DatabaseUnavailable(error),
            store::Error::StandbyMissing => Error::StandbyMissing(error),
            store::Error::Denied(_) => Error::DatabaseDenied(error),
            store::Error::Sql(_) | store::Error::Unknown(_) | store::Error::Identity(_) => Error::Database(error),
        }
    }
}

impl From<cdc_destination::Error> for Error {
    fn from(error: cdc_destination::Error) -> Error {
        match error {
            cdc_destination::Error::Full(_) => Error::OutputFull(error),
            cdc_destination::Error::ReadOnly(_) => Error::OutputReadOnly(error),
            cdc_destination::Error::Missing(_)
            | cdc_destination::Error::Unused
            | cdc_destination::Error::Replaced(_) => Error::OutputMissing(error),
            cdc_destination::Error::Elsewhere => Error::FileOnOtherHost,
            cdc_destination::Error::Gone => Error::FileGone,
            cdc_destination::Error::Settings(_)
            | cdc_destination::Error::Unavailable(_)
            | cdc_destination::Error::Stalled(_)
            | cdc_destination::Error::TooLarge(_)
            | cdc_destination::Error::Stopped
            | cdc_destination::Error::Io(_) => Error::Output(error),
        }
    }
}

/// The health of the service. Each `Err` contains a reason why the service cannot work.
#[derive(Debug)]
pub struct Health {
    pub postgres: Result<(), Arc<Error>>,
    /// `Ok` if the output folder or bucket can accept a file.
    pub output: Result<(), Arc<Error>>,
    /// The time for which this process could claim no job, if that is a minute or more.
    pub claims_fail: Option<Duration>,
    pub others: OtherProcesses,
    pub is_draining: bool,
    /// The state of the datasets' tables. A dataset that is not ready does not affect exports of other datasets. `None`
    /// if no read has succeeded in the last minute.
    pub tables: Option<CachedRead<Arc<TableStates>>>,
    /// Why the operator's file, which has changed, is not in force. `None`: it is.
    pub stale_catalog: Option<Arc<str>>,
}

/// The state of all tables.
#[derive(Clone, Debug)]
pub struct TableStates {
    pub datasets: Vec<Description>,
    /// The tables whose changes are captured although no dataset needs them. A caller bound to datasets sees none.
    pub without_dataset: Vec<Table>,
}

/// Time limit of a call, so that clients get a response or an error within two seconds.
const CALL_TIMEOUT: Duration = Duration::from_millis(1_900);

/// Maximum number of concurrent operations on the destination. Each one can block a thread on a network file system.
const MAX_DESTINATION_OPERATIONS: usize = 16;

/// Time limit for finding the cause of a timeout.
const DIAGNOSIS_TIMEOUT: Duration = Duration::from_millis(200);

/// Age up to which a check of Postgres or of the destination answers health checks and scrapes.
const CHECK_CACHE_TIME: Duration = Duration::from_secs(1);

/// Age up to which it answers them if the next check takes long.
const MAX_CHECK_AGE: TimeDelta = TimeDelta::seconds(2);

/// Time for which health checks use descriptions of the datasets, so that they cost the database little.
const DATASETS_CACHE_TIME: Duration = Duration::from_secs(5);

/// Maximum number of reads of tables that go on behind pages of consumers. They leave a connection of their pool to
/// other calls.
const MAX_LAG_READS: usize = 1;

/// Time limit of a read of a table. Only such a call may exceed [`CALL_TIMEOUT`].
pub const COUNTING_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Settings {
    pub destination: Limited,
    pub catalog: CurrentCatalog,
    pub terms: Terms,
    /// True if downloads are redirected to the bucket. If false, the service streams the bytes.
    pub redirects_downloads: bool,
    /// The bytes of the change log that all positions together may hold.
    pub log_max_bytes: u64,
}

/// The database connections, in one pool per purpose.
#[derive(Clone, Debug)]
pub struct Stores {
    /// The pool for calls of clients.
    pub api: Store,
    pub probe: Arc<Probe>,
    /// The pool of this process's exports, if it runs any. Used only for metrics of the pool.
    pub control: Option<Store>,
}

/// The operations of clients on the database, the tables and the destination.
///
/// # Errors
/// Every operation fails if the database fails or does not respond in time. The documentation of each operation lists
/// further errors.
#[derive(Clone, Debug)]
pub struct Service {
    store: Store,
    /// A separate connection, so that a busy API does not make the database appear unavailable.
    probe: Arc<Probe>,
    control: Option<Store>,
    source: Source,
    destination: Limited,
    /// The same destination with a permit for health checks, so that they and downloads don't wait for each other.
    checked_destination: Limited,
    output_failures: Arc<LogThrottle>,
    catalog: Arc<Catalog>,
    terms: Terms,
    redirects_downloads: bool,
    log_max_bytes: u64,
    cached: Caches,
    /// All datasets, of which `catalog` has those that the caller may see.
    current: CurrentCatalog,
    /// The permits of reads of tables that go on behind pages.
    lag_reads: Arc<Semaphore>,
    /// Cancelled when the process stops starting exports.
    draining: CancellationToken,
    /// Cancelled when calls that only wait must return.
    stopping: CancellationToken,
    followers: Arc<Followers>,
    keyring: Arc<Keyring>,
    /// The exports that the caller may see and request. `catalog` has only the datasets and schedules within them.
    bounds: Bounds,
    /// The sender of the request, which learns the names in the request for its audit lines.
    origin: Arc<Origin>,
}

/// The results of reads that calls share.
#[derive(Clone, Debug, Default)]
struct Caches {
    /// The last check of Postgres, with the number of other processes whose claims fail.
    postgres: CachedReads<(), Result<OtherProcesses, Arc<Error>>>,
    output: CachedReads<(), Result<(), Arc<Error>>>,
    metrics: Arc<ReadCache<String>>,
    tables: CachedReads<(), Arc<TableStates>>,
    /// The lags of the consumers of a dataset, as a page has them.
    lags: CachedReads<LagKey, Vec<ConsumerLag>>,
    /// The use of the change log by the lanes of a page.
    log_use: CachedReads<Vec<(String, String)>, Arc<Vec<LogUse>>>,
}

impl Service {
    /// Must be called in a Tokio runtime.
    ///
    /// After `draining` is cancelled, the service is not ready. After `stopping` is cancelled, calls that wait for a
    /// job return immediately.
    pub fn new(
        settings: Settings,
        stores: Stores,
        source: Source,
        draining: CancellationToken,
        stopping: CancellationToken,
    ) -> Service {
        let Settings { destination, catalog, terms, redirects_downloads, log_max_bytes } = settings;
        // The destination has the same time limit as a call.
        let limited = |max_concurrent| destination.limited(max_concurrent, Some(call_timeout()));
        let (destination, checked_destination) = (limited(MAX_DESTINATION_OPERATIONS), limited(1));
        let Stores { api, probe, control } = stores;
        let followers = Arc::new(Followers::new(api.clone()));
        let keyring = Arc::new(Keyring::new(api.clone()));
        catalog.get().schedules().iter().for_each(|schedule| metrics::init_schedule(&schedule.name));
        Service {
            store: api,
            probe,
            control,
            source,
            destination,
            checked_destination,
            output_failures: Arc::default(),
            catalog: catalog.get(),
            current: catalog,
            terms,
            redirects_downloads,
            log_max_bytes,
            cached: Caches::default(),
            lag_reads: Arc::new(Semaphore::new(MAX_LAG_READS)),
            draining,
            stopping,
            followers,
            keyring,
            bounds: Bounds::NONE,
            origin: Arc::default(),
        }
    }

    /// Returns the service for a request of this sender, as a caller within these bounds sees it. `key` is the public
    /// part of the caller's key, if it has one.
    pub fn for_request(&self, bounds: &Bounds, key: Option<&Prefix>, origin: Arc<Origin>) -> Service {
        let store = key.map_or_else(|| self.store.clone(), |key| self.store.of_key(key));
        let catalog = self.current.get();
        let mut service = Service { store, origin, catalog, ..self.clone() };
        if !bounds.allow_all() {
            service.catalog = Arc::new(service.catalog.within(bounds));
            service.bounds = bounds.clone();
        }
        service
    }

    /// Returns the service with downloads that are never redirected to the bucket.
    pub fn without_redirects(mut self) -> Service {
        self.redirects_downloads = false;
        self
    }

    pub(crate) fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    /// Returns the dataset with this name.
    ///
    /// # Errors
    /// If the caller may not see it, or if the catalog has no such dataset.
    pub fn dataset(&self, name: &str) -> Result<&Arc<Dataset>, Error> {
        self.require_dataset(name)?;
        Ok(self.catalog.named(name)?)
    }

    /// Checks that the caller may see and request exports of a consumer, or ad-hoc exports if `None`.
    pub fn require_consumer(&self, consumer: Option<&ConsumerId>) -> Result<(), Error> {
        if let Some(consumer) = consumer {
            let _ = self.origin.consumer.set(consumer.clone());
        }
        let is_allowed = self.bounds.allow_consumer(consumer);
        if is_allowed { Ok(()) } else { Err(Error::ConsumerNotAllowed(consumer.cloned())) }
    }

    /// Checks that the caller may see and export a dataset. The dataset need not exist.
    pub fn require_dataset(&self, name: &str) -> Result<(), Error> {
        // Any text may be sent as a name.
        if is_dataset_name(name) {
            let _ = self.origin.dataset.set(name.to_owned());
        }
        if self.bounds.allow_dataset(name) { Ok(()) } else { Err(Error::DatasetNotAllowed(name.to_owned())) }
    }

    pub fn implied_dataset(&self) -> Result<&Arc<Dataset>, SeveralDatasets> {
        self.catalog.implied()
    }

    /// Returns the datasets that the caller may see as they were `fresh` ago at most. If that takes long, returns the
    /// result of an earlier call, up to a minute old. With a `fresh` of zero, a dataset that is not ready is one now: a
    /// table that was tracked a moment ago is ready.
    pub async fn datasets(&self, fresh: Duration) -> Result<CachedRead<Arc<TableStates>>, Arc<Error>> {
        let (changed_at, called_at) = (self.current.changed_at(), Utc::now());
        let mut tables = self.cached.tables.get((), fresh, Some(changed_at), self.clone().read_tables()).await?;
        let is_unready = |it: &Description| it.reason().is_some();
        if fresh.is_zero() && tables.as_of < called_at && tables.value.datasets.iter().any(is_unready) {
            tables = self.cached.tables.get((), fresh, Some(called_at), self.clone().read_tables()).await?;
        }
        if self.bounds.datasets.is_some() {
            let is_allowed = |it: &&Description| self.bounds.allow_dataset(&it.dataset.name);
            let datasets = tables.value.datasets.iter().filter(is_allowed).cloned().collect();
            tables.value = Arc::new(TableStates { datasets, without_dataset: Vec::new() });
        }
        Ok(tables)
    }

    async fn read_tables(self) -> Result<Arc<TableStates>, Error> {
        let (catalog, untrackable) = (self.current.get(), self.current.untrackable());
        let datasets: Vec<_> = catalog.iter().cloned().collect();
        let mut datasets = on_table(self.source.describe(&datasets)).await?;
        for described in &mut datasets {
            let tried = untrackable.get(&described.dataset.name).cloned();
            described.why_untracked = described.why_untracked.take().or(tried);
        }
        let without_dataset =
            on_table(self.source.tables_without_dataset(catalog.datasets(), &catalog.left_out_tables())).await?;
        Ok(Arc::new(TableStates { datasets, without_dataset }))
    }

    /// Returns the tables that the caller may see, and that a pattern matches although they can't be datasets.
    pub fn left_out(&self) -> &[LeftOut] {
        self.catalog.left_out()
    }

    pub async fn describe(&self, dataset: &Arc<Dataset>) -> Result<Description, Error> {
        let mut described = on_table(self.source.describe(slice::from_ref(dataset))).await?;
        let described = described.pop().expect("each dataset has a description");
        let tried = || self.current.untrackable().get(&dataset.name).cloned();
        Ok(Description { why_untracked: described.why_untracked.clone().or_else(tried), ..described })
    }

    pub async fn has_index(&self, table: &Table, column: &TableColumn) -> Result<bool, Error> {
        on_table(self.source.has_index(table, column)).await
    }

    pub async fn soft_delete_user(&self, id: i64) -> Result<demo::User, Error> {
        let user = with_timeout(demo::soft_delete(&self.store, id)).await?.ok_or(Error::NoUser)?;
        self.origin.log_done(Action::DeleteUser, None, Some("users"), None);
        Ok(user)
    }

    /// Checks that Postgres can be used and accepts commits.
    pub async fn ping(&self) -> Result<(), Arc<Error>> {
        self.processes().await.map(drop)
    }

    /// Checks what [`ping`](Service::ping) checks, and reads the state of the processes that run exports.
    async fn processes(&self) -> Result<OtherProcesses, Arc<Error>> {
        let probe = Arc::clone(&self.probe);
        checked(&self.cached.postgres, async move { with_timeout(probe.other_processes()).await }).await
    }

    /// Checks that the output folder or bucket takes a file. Logs a failure once a minute.
    pub async fn require_room(&self) -> Result<(), Arc<Error>> {
        let (destination, throttle) = (self.checked_destination.clone(), Arc::clone(&self.output_failures));
        let check = async move {
            let room = destination.require_room().await;
            if let Err(error) = &room
                && let Some(times) = throttle.should_log(chain(error))
            {
                tracing::warn!(event = "output_not_ready", error = chain(error), times);
            }
            Ok(room?)
        };
        checked(&self.cached.output, check).await
    }

    /// Returns true if the process is shutting down and starts no more exports.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    pub async fn health(&self) -> Health {
        let datasets = tokio::time::timeout(call_timeout(), self.datasets(DATASETS_CACHE_TIME));
        let (postgres, output, datasets) = tokio::join!(self.processes(), self.require_room(), datasets);
        let others = postgres.as_ref().copied().unwrap_or_default();
        let (postgres, claims_fail) = (postgres.map(drop), self.store.claims_fail());
        let is_draining = self.is_draining();
        let tables = datasets.ok().and_then(Result::ok);
        let stale_catalog = self.current.stale();
        Health { postgres, output, claims_fail, others, is_draining, tables, stale_catalog }
    }
}
