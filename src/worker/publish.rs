//! A committed file gets its final name, and that is recorded. Safe to be done by several processes at once and after a crash at any
//! point.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::file::FileRecord;
use crate::sink::{self, Folder, Published};
use crate::worker::{Error, Worker};

/// A file that is committed and nowhere in its folder for so long is lost: who was just renaming it has long done that.
pub(crate) const LOST_AFTER: Duration = Duration::from_secs(10);

/// How a publication went.
pub(crate) enum Publication {
    /// The file has its name, or somebody else ended the job.
    Done,
    /// It is nowhere in the folder. Perhaps another process is just renaming it.
    Missing(Box<FileRecord>),
}

/// The way of one task to the folder. Operations block, and one on a dead network never returns: it keeps its thread, and the task
/// gets no second one.
pub(crate) struct FolderAccess {
    folder: Arc<Folder>,
    turn: Arc<Semaphore>,
}

impl FolderAccess {
    pub(crate) fn new(worker: &Worker) -> FolderAccess {
        FolderAccess { folder: Arc::clone(&worker.folder), turn: Arc::new(Semaphore::new(1)) }
    }

    /// Works on the folder, on a thread that may block.
    ///
    /// # Errors
    /// If that fails, or the last operation hasn't come back yet.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, sink::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let Ok(turn) = Arc::clone(&self.turn).try_acquire_owned() else {
            return Err(sink::Error::Io(std::io::ErrorKind::TimedOut.into()).into());
        };
        let folder = Arc::clone(&self.folder);
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&folder);
            drop(turn);
            done
        });
        Ok(done.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
    }
}

/// Gives a committed file its final name and records that.
pub(crate) async fn publish(
    worker: &Worker,
    folder: &FolderAccess,
    mut record: FileRecord,
) -> Result<Publication, Error> {
    loop {
        // What is handed out is known beside the database first: that may be put back to where it knows nothing of it.
        mark(worker, folder, &record).await?;
        let wanted = record.clone();
        let publish = move |folder: &Folder| folder.publish(&wanted.staged, &wanted.name);
        match folder.run(publish).await? {
            Published::Done => {
                set_published(worker, folder, record).await?;
                return Ok(Publication::Done);
            }
            Published::Taken => worker.with_timeout(worker.store.rename_output(&record)).await?,
            Published::Gone => {}
        }
        match worker.with_timeout(worker.store.file(record.job)).await? {
            Some(now) if now.name != record.name => record = now,
            Some(now) if now.is_published => return Ok(Publication::Done),
            Some(now) => return Ok(Publication::Missing(Box::new(now))),
            None => return Ok(Publication::Done),
        }
    }
}

async fn set_published(worker: &Worker, folder: &FolderAccess, record: FileRecord) -> Result<(), Error> {
    if worker.with_timeout(worker.store.published(&record)).await?.is_some() {
        // Its lane waited for that.
        worker.work_hint.notify_waiters();
    } else if worker.with_timeout(worker.store.file(record.job)).await?.is_none() {
        // Somebody gave it up in this moment: a file without a completed job is nobody's.
        folder.run(move |folder| folder.remove(&record.staged, &record.name)).await?;
    } else if let Some(last) = worker.with_timeout(worker.store.last_of_lane(&record)).await? {
        // Who slept through somebody else's publication may have put an old marker in place of a newer one.
        mark(worker, folder, &last).await?;
    }
    Ok(())
}

/// Has the folder remember that this is the last file of its lane, unless it remembers one that came after it, or that the database
/// doesn't know: it was put back then. The lane's next attempt sees that marker, and a full export goes on from it.
async fn mark(worker: &Worker, folder: &FolderAccess, record: &FileRecord) -> Result<(), Error> {
    let Some(consumer) = &record.consumer else { return Ok(()) };
    let mut replaced = record.marker_seen;
    loop {
        let (there, consumer) = (record.clone(), consumer.clone());
        let mark = move |folder: &Folder| {
            let FileRecord { database, dataset, .. } = &there;
            folder.mark(database, &consumer, dataset, &there.marker(), replaced)
        };
        let Some(other) = folder.run(mark).await? else { return Ok(()) };
        // What the folder names by then may be a third one, which is asked about as well.
        if !worker.with_timeout(worker.store.is_after(record, &other)).await? {
            tracing::warn!(event = "marker_left", jobId = %record.job, marked = %other.job);
            return Ok(());
        }
        replaced = Some(other.job);
    }
}

/// Fails a job whose file is in the folder under no name. Nothing happens if it was published meanwhile.
pub(crate) async fn give_up(worker: &Worker, record: &FileRecord) -> Result<(), Error> {
    // Whose file another database names has nothing to wait for.
    let after = if record.is_own { LOST_AFTER } else { Duration::ZERO };
    if worker.with_timeout(worker.store.give_up(record, after)).await?.is_some() {
        worker.work_hint.notify_waiters();
    }
    Ok(())
}
