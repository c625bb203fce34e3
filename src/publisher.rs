//! A committed file gets its final name, and that is recorded. Safe to be done by several processes at once and after a crash at any
//! point.

use std::time::Duration;

use crate::file::FileRecord;
use crate::job::JobId;
use crate::sink::{self, Destination, Published};
use crate::store::{self, Store, lease};

/// How a publication went.
#[derive(Debug)]
pub enum Publication {
    /// The file has its name, or the job was ended otherwise.
    Done,
    /// The file is not in the destination. Perhaps another process is just renaming it.
    Missing(Box<FileRecord>),
}

/// Why a file has no name yet.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The destination failed.
    #[error(transparent)]
    Sink(#[from] sink::Error),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Publishes the files of one task.
#[derive(Clone, Debug)]
pub struct Publisher {
    store: Store,
    destination: Destination,
    call_timeout: Duration,
}

impl Publisher {
    /// A publisher for this destination, within its limits. `lease` is how long a job stays with a worker that doesn't renew its lease.
    pub fn new(store: &Store, destination: &Destination, lease: Duration) -> Publisher {
        Publisher { store: store.clone(), destination: destination.clone(), call_timeout: lease::call_timeout(lease) }
    }

    /// Gives a job's file its final name, if the job is committed. A missing file is left to maintenance.
    ///
    /// # Errors
    /// If the destination or the database fails.
    pub async fn publish_job(&self, job: JobId) -> Result<(), Error> {
        match self.with_timeout(self.store.file(job)).await? {
            Some(record) => self.publish(record).await.map(drop),
            None => Ok(()),
        }
    }

    /// Gives a committed file its final name and records that.
    ///
    /// # Errors
    /// If the destination or the database fails.
    pub async fn publish(&self, mut record: FileRecord) -> Result<Publication, Error> {
        loop {
            // The marker beside the files comes first: the database may be restored to a state in which it knows nothing of this export.
            self.mark(&record).await?;
            match self.destination.publish(&record).await? {
                Published::Done(location) => {
                    record.staged.identity.location = location;
                    self.set_published(record).await?;
                    return Ok(Publication::Done);
                }
                Published::Taken => self.with_timeout(self.store.rename_output(&record)).await?,
                Published::Gone => {}
            }
            match self.with_timeout(self.store.file(record.job)).await? {
                Some(now) if now.name != record.name => record = now,
                Some(now) if now.is_published => return Ok(Publication::Done),
                Some(now) => return Ok(Publication::Missing(Box::new(now))),
                None => return Ok(Publication::Done),
            }
        }
    }

    async fn set_published(&self, record: FileRecord) -> Result<(), Error> {
        let location = self.destination.location(&record);
        if self.with_timeout(self.store.published(&record, location.as_deref())).await?.is_some() {
            return Ok(());
        }
        if self.with_timeout(self.store.file(record.job)).await?.is_none() {
            // The job was given up in this moment: a file without a completed job has to go.
            self.destination.remove(&record).await?;
        } else if let Some(last) = self.with_timeout(self.store.last_of_lane(&record)).await? {
            // A process that slept while another one published may have replaced a newer marker by an older one.
            self.mark(&last).await?;
        }
        Ok(())
    }

    /// Makes the destination's marker of the lane name this file, unless the marker names a later one, or one that the database doesn't
    /// know because it was restored. The lane's next attempt sees such a marker, and only a full export goes on.
    async fn mark(&self, record: &FileRecord) -> Result<(), Error> {
        let Some(consumer) = &record.consumer else { return Ok(()) };
        let mut replaced = record.marker_seen;
        loop {
            let Some(other) = self.destination.mark(record, consumer, replaced).await? else { return Ok(()) };
            // By then the marker may name a third export, which is asked about as well.
            if !self.with_timeout(self.store.is_after(record, &other)).await? {
                tracing::warn!(event = "marker_left", jobId = %record.job, marked = %other.job);
                return Ok(());
            }
            replaced = Some(other.job);
        }
    }

    /// Fails a job whose file is in the destination under neither name. Nothing happens if the file was published meanwhile.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn give_up(&self, record: &FileRecord) -> Result<(), Error> {
        self.with_timeout(self.store.give_up(record)).await?;
        Ok(())
    }

    async fn with_timeout<T>(&self, call: impl Future<Output = Result<T, store::Error>>) -> Result<T, store::Error> {
        store::with_timeout(self.call_timeout, call).await
    }
}
