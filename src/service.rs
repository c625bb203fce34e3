//! What a client may do: ask for exports, look at them, stop them, fetch their files, see a watermark.
//!
//! HTTP is one way in and knows this room only. Knows no status codes and runs no export.

mod consumers;
pub mod files;
mod followers;
mod keys;
mod scrape;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dataset::catalog::Catalog;
use crate::dataset::fault::Faults;
use crate::dataset::{Dataset, Description};
use crate::demo;
use crate::job::lane::Lane;
use crate::job::selection::{BadSelection, Selection};
use crate::job::{Filter, IdempotencyKey, Job, JobId, Request, Status, Terms};
use crate::key::{Grant, PresentedKey};
use crate::service::files::FOLDER_TURNS;
use crate::service::followers::{Follower, Followers, Look, Seen};
use crate::service::keys::Keyring;
use crate::service::scrape::LastLook;
use crate::sink::{self, Folder};
use crate::source::{self, Source};
use crate::store::{
    self, Store,
    jobs::{Cancelled, Submitted},
    lanes::Elsewhere,
};

pub use followers::Party;

/// Why a request can't be met.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres can't be reached now.
    #[error("the database is not available")]
    DatabaseUnavailable(#[source] store::Error),
    /// Postgres answers, and can't write to our tables.
    #[error("{0}")]
    DatabaseSetBack(store::Error),
    /// Postgres refused what the service wants: a defect, or a schema that somebody changed.
    #[error("the database refused a statement")]
    Database(#[source] store::Error),
    /// The table didn't answer in time, or is gone, or may not be read.
    #[error("the table can't be read now")]
    Table(Option<source::Error>),
    /// No room on the output folder's disk.
    #[error("the output folder has no room left")]
    OutputFull(#[source] sink::Error),
    /// The output folder can only be read.
    #[error("the output folder can't be written")]
    OutputReadOnly(#[source] sink::Error),
    /// The output folder isn't there, or another one is in its place.
    #[error("the output folder is missing")]
    OutputMissing(#[source] sink::Error),
    /// The output folder can't be used.
    #[error("the output folder can't be used")]
    Output(#[source] sink::Error),
    /// Nobody's key, or one that was revoked or has expired.
    #[error("this key is not known, or it was revoked or has expired")]
    NoKey,
    /// There is no such job.
    #[error("there is no export with this id")]
    NoJob,
    /// There is no such user in a demo table of ours.
    #[error("there is no user with this id")]
    NoUser,
    /// The consumer has none yet.
    #[error("No watermark for this consumer")]
    NoWatermark,
    /// There is no such dataset.
    #[error("there is no dataset of this name; there are: {0}")]
    NoDataset(String),
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
    /// The file was removed, or is not the one that was exported.
    #[error("the file of this export was removed or replaced: a full export goes on from there")]
    FileGone,
    /// The file is in another host's folder.
    #[error("the file of this export is on another host")]
    FileOnOtherHost,
    /// The file is of the database that this one is a copy of.
    #[error("the file is of the database that this one is a copy of, and is removed there")]
    FileOfOtherDatabase,
    /// The job is being committed.
    #[error("the export is being committed")]
    Committing,
    /// The job may yet make its file.
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
    /// As many clients follow jobs as may, of one party or of all.
    #[error("too many clients follow or wait for exports now, with this key or from this address, or in all")]
    TooManyFollowers,
    /// The caller loaded another export last than its lane has it: those that were published since, then those under way.
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

/// What a caller that is out of step has to do.
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
            store::Error::Sql(_) | store::Error::Unknown(_) | store::Error::Identity(_) => Error::Database(error),
        }
    }
}

impl From<sink::Error> for Error {
    fn from(error: sink::Error) -> Error {
        match error {
            sink::Error::Full(_) => Error::OutputFull(error),
            sink::Error::ReadOnly(_) => Error::OutputReadOnly(error),
            sink::Error::Missing(_) => Error::OutputMissing(error),
            sink::Error::Io(_) => Error::Output(error),
        }
    }
}

/// The state of what the service stands on: `Err` says why not.
#[derive(Debug)]
pub struct Health {
    /// Postgres answers.
    pub postgres: Result<(), Error>,
    /// The output folder can take a file.
    pub output: Result<(), Error>,
}

/// A client gets an answer within 2 seconds, if only that there is none.
pub const CALL_TIMEOUT: Duration = Duration::from_millis(1_900);

/// How long a caller who has waited for so long is kept for a look at why.
const LAST_LOOK_TIMEOUT: Duration = Duration::from_millis(200);

/// How long the changes that wait for consumers may be counted, the one thing that takes its time.
pub const COUNTING_TIMEOUT: Duration = Duration::from_secs(5);

/// A look at a table, which somebody may have locked.
async fn on_table<T>(look: impl Future<Output = Result<T, source::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(COUNTING_TIMEOUT, look).await {
        Ok(Ok(seen)) => Ok(seen),
        Ok(Err(source::Error::Mismatch(faults))) => Err(Error::Mismatch(faults)),
        Ok(Err(error)) => Err(Error::Table(Some(error))),
        Err(_) => Err(Error::Table(None)),
    }
}

async fn with_timeout<T>(call: impl Future<Output = Result<T, store::Error>>) -> Result<T, Error> {
    Ok(store::with_timeout(CALL_TIMEOUT, call).await?)
}

/// The job at its end; `None` if nobody can tell.
async fn ended(mut follower: Follower) -> Option<Job> {
    loop {
        match follower.look().await.seen {
            Seen::Job(job) if job.status.is_terminal() => return Some(Job::clone(&job)),
            Seen::Job(_) | Seen::Nothing => {}
            Seen::Lost => return None,
        }
    }
}

/// The job once it stands differently; `None` if it never will, or nobody can tell.
async fn changed(follower: &mut Follower, last: &Job, since: Instant) -> Option<Job> {
    let standing = |job: &Job| (job.status, job.progress, job.rows_exported, job.bytes_written, job.attempt);
    while !last.status.is_terminal() {
        let Look { begun, seen } = follower.look().await;
        match seen {
            Seen::Job(job) if begun >= since && standing(&job) != standing(last) => return Some(Job::clone(&job)),
            Seen::Job(_) | Seen::Nothing => {}
            Seen::Lost => return None,
        }
    }
    None
}

/// What it works with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where files are.
    pub folder: Arc<Folder>,
    /// What may be exported.
    pub catalog: Arc<Catalog>,
    /// How a job submitted here is taken on.
    pub terms: Terms,
}

/// The database, in pools for different ends.
#[derive(Clone, Debug)]
pub struct Stores {
    /// For what clients ask.
    pub api: Store,
    /// To ask whether it answers at all, with a pool that nobody else uses.
    pub probe: Store,
    /// What the exports of this process have, if it runs some: only to see how busy it is.
    pub control: Option<Store>,
}

/// What clients may do.
#[derive(Clone, Debug)]
pub struct Service {
    store: Store,
    /// On a connection of its own: a busy API is not a database that is gone.
    probe: Store,
    control: Option<Store>,
    source: Source,
    folder: Arc<Folder>,
    catalog: Arc<Catalog>,
    terms: Terms,
    last_look: Arc<LastLook>,
    /// Ends what only waits.
    stopping: CancellationToken,
    /// A few operations on the folder at a time: a network file system may hang, and each would keep a thread.
    turns: Arc<Semaphore>,
    followers: Arc<Followers>,
    keyring: Arc<Keyring>,
}

impl Service {
    /// Once it is `stopping`, it answers those who wait for a job. Needs a runtime.
    pub fn new(settings: Settings, stores: Stores, source: Source, stopping: CancellationToken) -> Service {
        let Settings { folder, catalog, terms } = settings;
        let Stores { api, probe, control } = stores;
        let turns = Arc::new(Semaphore::new(FOLDER_TURNS));
        let followers = Arc::new(Followers::new(api.clone()));
        let keyring = Arc::new(Keyring::new(api.clone()));
        scrape::init_series(&catalog);
        let last_look = Arc::default();
        Service {
            store: api,
            probe,
            control,
            source,
            folder,
            catalog,
            terms,
            last_look,
            stopping,
            turns,
            followers,
            keyring,
        }
    }

    /// Whether this key was good when it was last looked up, however long ago: to know it from a guess, not to let it in.
    pub fn knows(&self, key: &PresentedKey) -> bool {
        self.keyring.knows(key)
    }

    /// What a key permits.
    ///
    /// # Errors
    /// If it is nobody's, or was revoked or has expired some seconds ago, or nobody can tell.
    pub async fn grant(&self, key: &PresentedKey) -> Result<Arc<Grant>, Error> {
        self.keyring.grant(key).await
    }

    /// Returns once the key is revoked or has expired, some seconds later.
    pub async fn gone(&self, key: &PresentedKey) {
        self.keyring.gone(key).await;
    }

    /// The dataset of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn dataset(&self, name: &str) -> Result<&Arc<Dataset>, Error> {
        self.catalog.get(name).ok_or_else(|| Error::NoDataset(self.catalog.names()))
    }

    /// Every dataset there is, with what its table looks like now.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn datasets(&self) -> Result<Vec<Description>, Error> {
        let mut datasets = Vec::new();
        for dataset in self.catalog.iter() {
            datasets.push(self.describe(dataset).await?);
        }
        Ok(datasets)
    }

    /// A dataset with what its table looks like now.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn describe(&self, dataset: &Arc<Dataset>) -> Result<Description, Error> {
        on_table(self.source.describe(dataset)).await
    }

    /// Takes a job on. It will be done, whatever happens to this process. A request that was sent before, by its key, is the
    /// job that it was then.
    ///
    /// # Errors
    /// If there is no such dataset, or not with what is selected of it, the key was sent with another request, too much is open,
    /// or the database fails.
    pub async fn submit(&self, request: &Request) -> Result<Job, Error> {
        let dataset = self.dataset(&request.dataset)?;
        if !request.selection.is_all()
            && let Err(bad) = self.check(dataset, &request.selection).await
        {
            // Sent before, it was good then, whatever the table is now.
            let before = with_timeout(self.store.sent_before(request)).await?;
            return before.filter(|job| request.made(job)).ok_or(bad);
        }
        // A broken folder is the worker's to report: the job fails with the reason.
        let store = self.on_folder(|folder| folder.destination_id()).await.ok();
        let submitted = with_timeout(self.store.submit(request, store, self.terms)).await;
        match self.or_set_back(submitted).await? {
            Submitted::Made(job) | Submitted::Before(job) => Ok(job),
            Submitted::KeyTaken(job) => Err(Error::KeyTaken(job.id)),
            Submitted::Elsewhere(Elsewhere::GoneOn(jobs)) => Err(Error::OutOfStep(jobs)),
            Submitted::Elsewhere(Elsewhere::Unknown) => Err(Error::Restored),
            Submitted::TooManyOpen(open) => Err(Error::TooManyOpen(open)),
            Submitted::QueueFull(open) => Err(Error::QueueFull(open)),
        }
    }

    /// Takes a job on that is like one which failed or was cancelled.
    ///
    /// # Errors
    /// If there is no such job, or it ended otherwise, or not yet; and as [`submit`](Service::submit).
    pub async fn retry(&self, id: JobId, key: Option<IdempotencyKey>) -> Result<Job, Error> {
        let Job { consumer, dataset, export_type, selection, encoding, after, status, .. } = self.job(id).await?;
        if !matches!(status, Status::Failed | Status::Cancelled) {
            return Err(Error::NotToRetry(status));
        }
        let retry_of = Some(id);
        self.submit(&Request { consumer, dataset, export_type, selection, encoding, after, retry_of, key }).await
    }

    async fn check(&self, dataset: &Arc<Dataset>, selection: &Selection) -> Result<(), Error> {
        let checked = on_table(self.source.check(dataset, selection)).await?;
        checked.map_err(Error::BadSelection)
    }

    /// A job.
    ///
    /// # Errors
    /// If there is none of this id.
    pub async fn job(&self, id: JobId) -> Result<Job, Error> {
        with_timeout(self.store.job(id)).await?.ok_or(Error::NoJob)
    }

    /// Cancels a job, or asks its worker to stop. True: it was cancelled before.
    ///
    /// # Errors
    /// If it is too late, or there is no such job.
    pub async fn cancel(&self, id: JobId) -> Result<(Job, bool), Error> {
        match with_timeout(self.store.cancel(id)).await? {
            Cancelled::Asked(job) => Ok((job, false)),
            Cancelled::Already(job) => Ok((job, true)),
            Cancelled::Committing => Err(Error::Committing),
            Cancelled::Ended(status) => Err(Error::Ended(status)),
            Cancelled::Unknown => Err(Error::NoJob),
        }
    }

    /// A job, once it has ended or `patience` has passed.
    ///
    /// # Errors
    /// If there is none of this id, too many follow jobs already, or the database fails.
    pub async fn ended_job(&self, id: JobId, timeout: Duration, party: Party) -> Result<Job, Error> {
        let deadline = Instant::now() + timeout;
        // Before the first look, so that no end is missed in between.
        let follower = self.followers.join(party, id);
        let job = self.job(id).await?;
        if job.status.is_terminal() || Instant::now() >= deadline {
            return Ok(job);
        }
        tokio::select! {
            job = ended(follower?) => if let Some(job) = job { return Ok(job) },
            () = tokio::time::sleep_until(deadline) => {}
            () = self.stopping.cancelled() => {}
        }
        self.job(id).await
    }

    /// A job as it stands, then again each time that it was seen to have changed, up to its end.
    ///
    /// # Errors
    /// If there is none of this id, too many follow jobs already, or the database fails; later that ends the stream after some
    /// time.
    pub async fn follow(&self, id: JobId, party: Party) -> Result<impl Stream<Item = Job> + use<>, Error> {
        let follower = self.followers.join(party, id)?;
        let first = self.job(id).await?;
        // A look that others began before may show the job as it was before.
        let since = Instant::now();
        let start = (follower, first.clone(), since, self.stopping.clone());
        let changes = stream::unfold(start, async |(mut follower, last, since, stopping)| {
            let next = tokio::select! {
                next = changed(&mut follower, &last, since) => next?,
                () = stopping.cancelled() => return None,
            };
            Some((next.clone(), (follower, next, since, stopping)))
        });
        Ok(stream::once(std::future::ready(first)).chain(changes))
    }

    /// Jobs that a filter lets through, newest first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn jobs(&self, filter: &Filter, limit: u32) -> Result<Vec<Job>, Error> {
        with_timeout(self.store.jobs(filter, limit)).await
    }

    /// The published exports of a lane after this one, by their numbers and from after the number `from`, where that is said.
    ///
    /// # Errors
    /// If the database knows no completed export of this id in the lane, or fails.
    pub async fn published_after(
        &self,
        lane: Lane<'_>,
        after: JobId,
        from: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Job>, Error> {
        with_timeout(self.store.published_after(lane, after, from, limit)).await?.ok_or(Error::Restored)
    }

    /// Marks a user of the demo table as deleted.
    ///
    /// # Errors
    /// If there is none of this id.
    pub async fn soft_delete_user(&self, id: i64) -> Result<demo::User, Error> {
        with_timeout(demo::soft_delete(&self.store, id)).await?.ok_or(Error::NoUser)
    }

    /// Whether Postgres answers.
    ///
    /// # Errors
    /// If it doesn't within 2 seconds.
    pub async fn ping(&self) -> Result<(), Error> {
        with_timeout(self.probe.ping()).await
    }

    /// Why a write failed, if that is Postgres's transaction ids. One that waited in vain for another transaction may have waited for
    /// one that never was.
    async fn or_set_back<T>(&self, written: Result<T, Error>) -> Result<T, Error> {
        if !matches!(&written, Err(Error::DatabaseUnavailable(cause)) if cause.was_waiting()) {
            return written;
        }
        match tokio::time::timeout(LAST_LOOK_TIMEOUT, self.probe.ping()).await {
            Ok(Err(cause @ store::Error::XidsSetBack(_))) => Err(cause.into()),
            _ => written,
        }
    }

    /// Whether a job could start now.
    pub async fn health(&self) -> Health {
        let (postgres, output) = tokio::join!(self.ping(), self.room());
        Health { postgres, output }
    }
}
