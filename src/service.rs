//! The calls of clients: ask for exports, look at them, stop them, fetch their files, see a watermark.
//!
//! `http` uses this module alone. Knows no status codes and runs no export.

pub mod consumers;
pub mod deadline;
mod deliveries;
pub mod files;
mod followers;
mod jobs;
mod keys;
pub mod schedules;
mod scrape;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::dataset::catalog::Catalog;
use crate::dataset::fault::{Faults, SeveralDatasets, UnknownDataset};
use crate::dataset::{Dataset, Description, Table, TableColumn, TableSchema};
use crate::demo;
use crate::job::selection::BadSelection;
use crate::job::{Job, JobId, Status, Terms};
use crate::service::deadline::{call_timeout, on_table, with_timeout};
use crate::service::followers::Followers;
use crate::service::keys::Keyring;
use crate::service::scrape::LastLook;
use crate::sink::{self, Destination, Limited, Limits};
use crate::source::{self, Source};
use crate::store::{self, Store};

pub use followers::Subscriber;

/// The reasons why a request can't be met.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres can't be reached now.
    #[error("the database is not available")]
    DatabaseUnavailable(#[source] store::Error),
    /// Postgres answers, and can't write to the service's tables.
    #[error("{0}")]
    DatabaseSetBack(store::Error),
    /// Postgres answers, and the role lacks a right to what the service has there.
    #[error("{0}")]
    DatabaseDenied(store::Error),
    /// Postgres refused what the service wants: a defect, or a schema that somebody changed.
    #[error("the database refused a statement")]
    Database(#[source] store::Error),
    /// The role may not read the dataset's table.
    #[error("{0}")]
    NotReadable(source::Error),
    /// The table didn't answer in time, or is gone.
    #[error("the table can't be read now")]
    Table(Option<source::Error>),
    /// No room in the output folder or bucket.
    #[error("the output folder or bucket has no room left")]
    OutputFull(#[source] sink::Error),
    /// The output folder or bucket can only be read.
    #[error("the output folder or bucket can't be written")]
    OutputReadOnly(#[source] sink::Error),
    /// The output folder or bucket isn't there, or another one is in its place.
    #[error("{0}")]
    OutputMissing(#[source] sink::Error),
    /// The output folder or bucket can't be used.
    #[error("the output folder or bucket can't be used")]
    Output(#[source] sink::Error),
    /// No such key, or one that was revoked or has expired.
    #[error("this key is not known, or it was revoked or has expired")]
    NoKey,
    /// There is no such job.
    #[error("there is no export with this id")]
    NoJob,
    /// There is no such delivery.
    #[error("there is no delivery with this id")]
    NoDelivery,
    /// A delivery's receiver is in the catalog no more.
    #[error("there is no webhook or amqp `{0}` in the operator's file any more, so nobody would tell it")]
    NoEndpoint(String),
    /// The demo's table has no such user, or is not the service's.
    #[error("there is no user with this id")]
    NoUser,
    /// The consumer has no watermark yet.
    #[error("No watermark for this consumer")]
    NoWatermark,
    /// There is no such dataset.
    #[error(transparent)]
    NoDataset(#[from] UnknownDataset),
    /// The dataset's table isn't there.
    #[error("there is no table `{table}`, whose rows the dataset `{dataset}` has")]
    NoTable {
        /// The dataset's name.
        dataset: String,
        /// The table, as the catalog has it.
        table: String,
    },
    /// Nobody told the service to capture the dataset's changes.
    #[error("{}", source::Error::NotTracked(.0.clone()))]
    NotTracked(String),
    /// The dataset has no times that a watermark could be compared with.
    #[error("the dataset `{0}` has no updated_at: a watermark can be forgotten, but not set")]
    NoTimes(String),
    /// A selection that the dataset's columns don't allow.
    #[error(transparent)]
    BadSelection(BadSelection),
    /// The table isn't as the dataset says.
    #[error("the table of the dataset is not as its operator says: {0}")]
    Mismatch(Faults),
    /// The job has no file yet, and may never have one.
    #[error("the export is {0}, so it has no file")]
    NoFile(Status),
    /// The file is in a folder.
    #[error(
        "the file is in a folder of the service, where it has no address: fetch it from here, by /exports/{{jobId}}/download"
    )]
    NoUrl,
    /// The job has several files.
    #[error("the export has {0} files: each is fetched by its part, /exports/{{jobId}}/files/{{part}}/download")]
    SeveralFiles(usize),
    /// The job has no such file.
    #[error("the export has {0} files, whose parts are numbered from 1")]
    NoPart(usize),
    /// The job has no manifest.
    #[error("there is no manifest of this export: it is an ad-hoc one")]
    NoManifest,
    /// The file was removed, or is not the one that was exported.
    #[error("the file of this export was removed or replaced: a full export goes on from there")]
    FileGone,
    /// The file is in another folder, perhaps another host's.
    #[error("the file of this export is in another OUTPUT_DIR, or on another host")]
    FileOnOtherHost,
    /// The file is of the database that this one is a copy of.
    #[error("the file is of the database that this one is a copy of, and is removed there")]
    FileOfOtherDatabase,
    /// The job has no file that anybody could have loaded.
    #[error("the export is {0}, so nobody can have loaded it")]
    NotPublished(Status),
    /// The job is no consumer's.
    #[error("the export belongs to no consumer, so nobody acknowledges it")]
    AdHoc,
    /// The job is being committed.
    #[error("the export is being committed")]
    Committing,
    /// The job is open, and may yet make its file.
    #[error("the export is {0}, so its file can't be removed yet")]
    Open(Status),
    /// The job has ended.
    #[error("the export is {0} already")]
    Ended(Status),
    /// The job has not failed, nor was it cancelled.
    #[error("the export is {0}: only a failed or cancelled one is tried again")]
    NotToRetry(Status),
    /// The key was sent with another request.
    #[error("this key was sent with another request, which made the export {0}")]
    KeyTaken(JobId),
    /// As many followers as there may be, of one key or address, or in all.
    #[error("too many clients follow or wait for exports now, with this key or from this address, or in all")]
    TooManyFollowers,
    /// The caller is out of step with its lane: the exports that were published since, then those under way.
    #[error("{}", gone_on(.0))]
    OutOfStep(Vec<Job>),
    /// The database doesn't know what the caller loaded last, or has forgotten what came after it.
    #[error(
        "the database doesn't know, of this consumer and dataset, the completed export with the id and content that `after` names, or one \
         that came after it: it was restored, or these exports are not kept any more; a full export goes on from there"
    )]
    Restored,
    /// The consumer has too many open jobs.
    #[error("{0} exports are open, which is as many as a consumer may have: wait for some to end")]
    TooManyOpen(i64),
    /// There are too many open jobs.
    #[error("{0} exports are open, which is as many as there may be of all consumers together: wait for some to end")]
    QueueFull(u32),
}

/// Tells a caller that is out of step what to load, and when to ask again.
fn gone_on(jobs: &[Job]) -> String {
    let open = jobs.iter().filter(|job| !job.status.is_terminal()).count();
    format!(
        "the consumer's exports are not where `after` has them: {} published since, {open} open; load the published ones in their order, \
         wait for the open ones and load those that complete, and ask again after the last",
        jobs.len() - open
    )
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Error {
        match error {
            store::Error::Unavailable(_) | store::Error::LockConflict(_) => Error::DatabaseUnavailable(error),
            store::Error::XidsSetBack(_) => Error::DatabaseSetBack(error),
            store::Error::Denied(_) => Error::DatabaseDenied(error),
            store::Error::Sql(_) | store::Error::Unknown(_) | store::Error::Identity(_) => Error::Database(error),
        }
    }
}

impl From<sink::Error> for Error {
    fn from(error: sink::Error) -> Error {
        match error {
            sink::Error::Full(_) => Error::OutputFull(error),
            sink::Error::ReadOnly(_) => Error::OutputReadOnly(error),
            sink::Error::Missing(_) | sink::Error::Unused | sink::Error::Replaced(_) => Error::OutputMissing(error),
            sink::Error::Elsewhere => Error::FileOnOtherHost,
            sink::Error::Gone => Error::FileGone,
            sink::Error::Settings(_)
            | sink::Error::Unavailable(_)
            | sink::Error::TooLarge(_)
            | sink::Error::Stopped
            | sink::Error::Io(_) => Error::Output(error),
        }
    }
}

/// The health of the service; `Err` says why it can't work.
#[derive(Debug)]
pub struct Health {
    /// Postgres answers.
    pub postgres: Result<(), Error>,
    /// The output folder or bucket can take a file.
    pub output: Result<(), Error>,
    /// The process takes no more exports on, and ends.
    pub is_draining: bool,
    /// The datasets, each with whether its table was as it says and captured, up to five seconds ago. Other datasets'
    /// exports start all the same. `None`: Postgres doesn't say in time.
    pub datasets: Option<Arc<Vec<Description>>>,
}

/// A client gets an answer within 2 seconds, if only that there is none.
const CALL_TIMEOUT: Duration = Duration::from_millis(1_900);

/// Operations on the destination at a time: each may hang on a network file system, and keeps a thread then.
const OPERATIONS: usize = 16;

/// The time that a call which timed out has to find the cause.
const LAST_LOOK_TIMEOUT: Duration = Duration::from_millis(200);

/// The time for which one look at the datasets serves, since it costs several statements for each of them.
const DATASETS_LOOK_LASTS: Duration = Duration::from_secs(5);

/// The longest time to count the changes that wait for consumers: the one call that may take longer.
pub const COUNTING_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of the service.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The destination of files.
    pub destination: Limited,
    /// The datasets.
    pub catalog: Arc<Catalog>,
    /// The limits under which a job is accepted.
    pub terms: Terms,
    /// The way in which clients fetch files from a store.
    pub downloads: Downloads,
}

/// The way in which clients fetch files from a store.
#[derive(Clone, Copy, Debug)]
pub struct Downloads {
    /// True if a download is sent on to the store; else the service passes its bytes on.
    pub are_redirected: bool,
    /// The time for which an address of a file is good.
    pub url_lifetime: Duration,
}

/// The database, in a pool for each purpose.
#[derive(Clone, Debug)]
pub struct Stores {
    /// For the calls of clients.
    pub api: Store,
    /// To ask whether Postgres answers: a pool of its own.
    pub probe: Store,
    /// The pool of this process's exports, if it runs some: only for the metrics of its use.
    pub control: Option<Store>,
}

/// The calls of clients, over the database, the tables and the destination.
///
/// # Errors
/// Every call fails if the database fails or doesn't answer in time. Its own documentation names what else makes it
/// fail.
#[derive(Clone, Debug)]
pub struct Service {
    store: Store,
    /// On a connection of its own, so that a busy API isn't taken for a database that is gone.
    probe: Store,
    control: Option<Store>,
    source: Source,
    destination: Limited,
    catalog: Arc<Catalog>,
    terms: Terms,
    downloads: Downloads,
    last_look: Arc<LastLook<String>>,
    last_datasets: Arc<LastLook<Arc<Vec<Description>>>>,
    /// True if the process takes no more exports on.
    draining: CancellationToken,
    /// Ends calls that only wait.
    stopping: CancellationToken,
    followers: Arc<Followers>,
    keyring: Arc<Keyring>,
}

impl Service {
    /// From `draining` on it isn't ready; after `stopping`, calls that wait for a job are answered at once. Needs a
    /// runtime.
    pub fn new(
        settings: Settings,
        stores: Stores,
        source: Source,
        draining: CancellationToken,
        stopping: CancellationToken,
    ) -> Service {
        let Settings { destination, catalog, terms, downloads } = settings;
        // As long as a client waits.
        let destination = destination.limited(Limits { max_concurrent: OPERATIONS, timeout: Some(call_timeout()) });
        let Stores { api, probe, control } = stores;
        let followers = Arc::new(Followers::new(api.clone()));
        let keyring = Arc::new(Keyring::new(api.clone()));
        scrape::init_series(&catalog);
        Service {
            store: api,
            probe,
            control,
            source,
            destination,
            catalog,
            terms,
            downloads,
            last_look: Arc::default(),
            last_datasets: Arc::default(),
            draining,
            stopping,
            followers,
            keyring,
        }
    }

    /// The keys that callers present.
    pub(crate) fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    /// The dataset of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn dataset(&self, name: &str) -> Result<&Arc<Dataset>, Error> {
        Ok(self.catalog.named(name)?)
    }

    /// The dataset that a call means which names none.
    ///
    /// # Errors
    /// If there are several, and none is `users`.
    pub fn implied_dataset(&self) -> Result<&Arc<Dataset>, SeveralDatasets> {
        self.catalog.implied()
    }

    /// Every dataset, with its table's present columns.
    pub async fn datasets(&self) -> Result<Vec<Description>, Error> {
        let mut datasets = Vec::new();
        for dataset in self.catalog.iter() {
            datasets.push(self.describe(dataset).await?);
        }
        Ok(datasets)
    }

    /// Returns the tables whose changes are captured although no dataset needs them.
    pub async fn tables_without_dataset(&self) -> Result<Vec<Table>, Error> {
        on_table(self.source.tables_without_dataset(&self.catalog)).await
    }

    /// A dataset with its table's present columns.
    pub async fn describe(&self, dataset: &Arc<Dataset>) -> Result<Description, Error> {
        on_table(self.source.describe(dataset)).await
    }

    /// Returns true if an index begins with this column of a table.
    pub async fn has_index(&self, table: &Table, column: &TableColumn) -> Result<bool, Error> {
        on_table(self.source.has_index(table, column)).await
    }

    /// Counts the rows that the schema's column `deleted` leaves out of full exports; `None` if that takes too long.
    pub async fn count_deleted(&self, dataset: &Dataset, schema: &TableSchema) -> Result<Option<i64>, Error> {
        match on_table(self.source.count_deleted(dataset, schema)).await {
            Err(Error::Table(None)) => Ok(None),
            counted => counted,
        }
    }

    /// Marks a user of the demo table as deleted.
    ///
    /// # Errors
    /// If there is none of this id.
    pub async fn soft_delete_user(&self, id: i64) -> Result<demo::User, Error> {
        with_timeout(demo::soft_delete(&self.store, id)).await?.ok_or(Error::NoUser)
    }

    /// Checks that Postgres answers within 2 seconds.
    pub async fn ping(&self) -> Result<(), Error> {
        with_timeout(self.probe.ping()).await
    }

    /// Returns true if the process is to end, and takes no more exports on.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Looks at everything that a job needs to start now.
    pub async fn health(&self) -> Health {
        let look = async { self.datasets().await.map(Arc::new) };
        let datasets = tokio::time::timeout(call_timeout(), self.last_datasets.within(DATASETS_LOOK_LASTS, look));
        let (postgres, output, datasets) = tokio::join!(self.ping(), self.destination.require_room(), datasets);
        let is_draining = self.is_draining();
        let output = output.map_err(Error::from);
        Health { postgres, output, is_draining, datasets: datasets.ok().and_then(Result::ok) }
    }
}
