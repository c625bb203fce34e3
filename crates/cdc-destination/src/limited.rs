//! Concurrency limits: the number of operations that one caller of a destination has under way, and how long it waits
//! for each.
//!
//! An operation on a dead network file system never returns. It keeps its thread and its permit, so a caller never has
//! more blocked threads than permits.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Destination, Draft, Error, ExportFiles, FileLocation, FileName, HiddenFile, Marker, MarkerFile, Prepared,
    Published, PublishedFile, SmallFile, StagedFile,
};

/// The number of operations that the workers of a process have under way: twice as many as there may be workers,
/// because an operation that hangs keeps its permit after its attempt has ended.
const MAX_CONCURRENT: usize = 128;

/// The permits of one caller. Clones share them.
#[derive(Clone, Debug)]
struct ConcurrencyLimit {
    permits: Arc<Semaphore>,
    timeout: Option<Duration>,
}

tokio::task_local! {
    /// The permit of the operation that this task is running.
    static PERMIT: Arc<OwnedSemaphorePermit>;
}

impl ConcurrencyLimit {
    fn new(max_concurrent: usize, timeout: Option<Duration>) -> ConcurrencyLimit {
        ConcurrencyLimit { permits: Arc::new(Semaphore::new(max_concurrent)), timeout }
    }

    /// Runs an operation under a permit.
    ///
    /// # Errors
    /// If the operation fails, or takes longer than the timeout. It is dropped then, and its effect is unknown. Work in
    /// [`blocking`] goes on and keeps the permit.
    async fn run<T>(&self, operation: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let permitted = async {
            let permit = Arc::clone(&self.permits).acquire_owned().await.expect("nobody closes the semaphore");
            PERMIT.scope(Arc::new(permit), operation).await
        };
        match self.timeout {
            None => permitted.await,
            Some(timeout) => match tokio::time::timeout(timeout, permitted).await {
                Ok(done) => done,
                Err(_) => Err(Error::Io(std::io::ErrorKind::TimedOut.into())),
            },
        }
    }
}

/// Runs work that may block on a thread of its own. The thread keeps the permit of the operation that calls this until
/// the work returns, even if nobody waits for it any more.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let permit = PERMIT.try_with(Arc::clone).ok();
    let work = move || {
        let _permit = permit;
        work()
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// A destination within the limits of one caller. Clones share the limits. Every file operation takes one permit.
#[derive(Clone, Debug)]
pub struct Limited {
    destination: Arc<dyn Destination>,
    limit: ConcurrencyLimit,
}

impl Limited {
    /// Limits a destination for the workers of a process, who are one caller together. They wait as long as an
    /// operation takes.
    pub fn new(destination: Arc<dyn Destination>) -> Limited {
        Limited { destination, limit: ConcurrencyLimit::new(MAX_CONCURRENT, None) }
    }

    /// Returns the same destination for another caller, within other limits: the number of operations under way at
    /// once, and the longest wait for one, including that for its permit. Bytes that are written to a draft or read
    /// from an open file are not operations.
    pub fn limited(&self, max_concurrent: usize, timeout: Option<Duration>) -> Limited {
        Limited { limit: ConcurrencyLimit::new(max_concurrent, timeout), ..self.clone() }
    }
}

#[async_trait]
impl Destination for Limited {
    async fn prepare(&self) -> Result<Prepared, Error> {
        self.limit.run(self.destination.prepare()).await
    }

    async fn id(&self) -> Result<Uuid, Error> {
        self.limit.run(self.destination.id()).await
    }

    fn stall_limit(&self) -> Option<Duration> {
        self.destination.stall_limit()
    }

    async fn require_room(&self) -> Result<(), Error> {
        self.limit.run(self.destination.require_room()).await
    }

    async fn create(
        &self,
        hidden: &HiddenFile,
        name: &FileName,
        stopped: &CancellationToken,
    ) -> Result<Box<dyn Draft>, Error> {
        self.limit.run(self.destination.create(hidden, name, stopped)).await
    }

    async fn publish(&self, file: &StagedFile, name: &str) -> Result<Published, Error> {
        self.limit.run(self.destination.publish(file, name)).await
    }

    async fn rename(&self, file: &StagedFile, name: &str) -> Result<Published, Error> {
        self.limit.run(self.destination.rename(file, name)).await
    }

    fn location(&self, file: &FileLocation, name: &str) -> Option<String> {
        self.destination.location(file, name)
    }

    async fn open(&self, file: &StagedFile, name: &str) -> Result<Option<Box<dyn PublishedFile>>, Error> {
        self.limit.run(self.destination.open(file, name)).await
    }

    async fn remove(&self, files: &[(String, StagedFile)]) -> Result<(), Error> {
        self.limit.run(self.destination.remove(files)).await
    }

    async fn hidden_files(&self) -> Result<Vec<HiddenFile>, Error> {
        self.limit.run(self.destination.hidden_files()).await
    }

    async fn sweep(&self, hidden: &HiddenFile, unwritten_for: Option<Duration>) -> Result<bool, Error> {
        self.limit.run(self.destination.sweep(hidden, unwritten_for)).await
    }

    async fn read_small(&self, name: &str, most: u64) -> Result<Option<SmallFile>, Error> {
        self.limit.run(self.destination.read_small(name, most)).await
    }

    async fn put_small(&self, draft: &str, name: &str, text: &str, before: Option<&SmallFile>) -> Result<bool, Error> {
        self.limit.run(self.destination.put_small(draft, name, text, before)).await
    }

    async fn remove_small(&self, name: &str) -> Result<(), Error> {
        self.limit.run(self.destination.remove_small(name)).await
    }

    fn numbers_manifests(&self) -> bool {
        self.destination.numbers_manifests()
    }

    async fn lane_markers(&self, files: &[MarkerFile]) -> Result<Vec<Option<Marker>>, Error> {
        self.limit.run(self.destination.lane_markers(files)).await
    }

    async fn last_manifest(&self, record: &ExportFiles) -> Result<u64, Error> {
        self.limit.run(self.destination.last_manifest(record)).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn blocked_work_keeps_its_permit_and_its_caller_waits_no_longer_than_the_timeout() {
        let limit = ConcurrencyLimit::new(1, Some(Duration::from_millis(50)));
        let (release, held) = mpsc::channel::<()>();
        let hangs = limit.run(blocking(move || Ok(held.recv().is_ok()))).await;
        assert!(matches!(hangs, Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::TimedOut));
        let begun = Arc::new(Semaphore::new(0));
        let begins = Arc::clone(&begun);
        let begin = move || {
            begins.add_permits(1);
            Ok(())
        };
        let behind = limit.run(blocking(begin)).await;
        assert!(behind.is_err() && begun.available_permits() == 0, "no second thread");
        // Another caller has permits of its own. The first one gets its permit back when the work returns.
        let other = ConcurrencyLimit::new(1, None);
        assert_eq!(other.run(blocking(|| Ok(1))).await.unwrap(), 1);
        release.send(()).unwrap();
        let patient = ConcurrencyLimit { timeout: None, ..limit };
        assert_eq!(patient.run(blocking(|| Ok(2))).await.unwrap(), 2);
    }
}
