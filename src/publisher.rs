//! A committed file gets its final name, and that is recorded. Safe to be done by several processes at once and after a crash at any
//! point.

use std::sync::Arc;
use std::time::Duration;

use crate::file::FileRecord;
use crate::job::JobId;
use crate::sink::access::FolderAccess;
use crate::sink::{self, Folder, Published};
use crate::store::{self, Store, lease};

/// A file that is committed and nowhere in its folder for so long is lost: who was just renaming it has long done that.
pub(crate) const LOST_AFTER: Duration = Duration::from_secs(10);

/// How a publication went.
#[derive(Debug)]
pub enum Publication {
    /// The file has its name, or somebody else ended the job.
    Done,
    /// It is nowhere in the folder. Perhaps another process is just renaming it.
    Missing(Box<FileRecord>),
}

/// Why a file has no name yet.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder failed.
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
    folder: FolderAccess,
    call_timeout: Duration,
}

impl Publisher {
    /// Publishes in this folder. `lease` is how long a job stays with a worker that gives no sign.
    pub fn new(store: &Store, folder: &Arc<Folder>, lease: Duration) -> Publisher {
        Publisher { store: store.clone(), folder: FolderAccess::new(folder), call_timeout: lease::call_timeout(lease) }
    }

    /// Gives a job's file its final name, if the job is committed. One that is missing is left for the next look.
    ///
    /// # Errors
    /// If the folder or the database fails.
    pub async fn publish_job(&self, job: JobId) -> Result<(), Error> {
        match self.with_timeout(self.store.file(job)).await? {
            Some(record) => self.publish(record).await.map(drop),
            None => Ok(()),
        }
    }

    /// Gives a committed file its final name and records that.
    ///
    /// # Errors
    /// If the folder or the database fails.
    pub async fn publish(&self, mut record: FileRecord) -> Result<Publication, Error> {
        loop {
            // What is handed out is known beside the database first: that may be put back to where it knows nothing of it.
            self.mark(&record).await?;
            let wanted = record.clone();
            let publish = move |folder: &Folder| folder.publish(&wanted.staged, &wanted.name);
            match self.folder.run(publish).await? {
                Published::Done => {
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
        if self.with_timeout(self.store.published(&record)).await?.is_some() {
            return Ok(());
        }
        if self.with_timeout(self.store.file(record.job)).await?.is_none() {
            // Somebody gave it up in this moment: a file without a completed job is nobody's.
            self.folder.run(move |folder| folder.remove(&record.staged, &record.name)).await?;
        } else if let Some(last) = self.with_timeout(self.store.last_of_lane(&record)).await? {
            // Who slept through somebody else's publication may have put an old marker in place of a newer one.
            self.mark(&last).await?;
        }
        Ok(())
    }

    /// Has the folder remember that this is the last file of its lane, unless it remembers one that came after it, or that the database
    /// doesn't know: it was put back then. The lane's next attempt sees that marker, and a full export goes on from it.
    async fn mark(&self, record: &FileRecord) -> Result<(), Error> {
        let Some(consumer) = &record.consumer else { return Ok(()) };
        let mut replaced = record.marker_seen;
        loop {
            let (there, consumer) = (record.clone(), consumer.clone());
            let mark = move |folder: &Folder| {
                let FileRecord { database, dataset, .. } = &there;
                folder.mark(database, &consumer, dataset, &there.marker(), replaced)
            };
            let Some(other) = self.folder.run(mark).await? else { return Ok(()) };
            // What the folder names by then may be a third one, which is asked about as well.
            if !self.with_timeout(self.store.is_after(record, &other)).await? {
                tracing::warn!(event = "marker_left", jobId = %record.job, marked = %other.job);
                return Ok(());
            }
            replaced = Some(other.job);
        }
    }

    /// Fails a job whose file is in the folder under no name. Nothing happens if it was published meanwhile.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn give_up(&self, record: &FileRecord) -> Result<(), Error> {
        // Whose file another database names has nothing to wait for.
        let after = if record.is_own { LOST_AFTER } else { Duration::ZERO };
        self.with_timeout(self.store.give_up(record, after)).await?;
        Ok(())
    }

    async fn with_timeout<T>(&self, call: impl Future<Output = Result<T, store::Error>>) -> Result<T, store::Error> {
        store::with_timeout(self.call_timeout, call).await
    }
}
