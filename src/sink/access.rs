//! The way of one task to the folder.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::sink::{Error, Folder};

/// Runs a task's operations on the folder. They block, and one on a dead network never returns: it keeps its thread, and the task
/// gets no second one.
#[derive(Clone, Debug)]
pub struct FolderAccess {
    folder: Arc<Folder>,
    turn: Arc<Semaphore>,
}

impl FolderAccess {
    /// The way of a task of its own.
    pub fn new(folder: &Arc<Folder>) -> FolderAccess {
        FolderAccess { folder: Arc::clone(folder), turn: Arc::new(Semaphore::new(1)) }
    }

    /// Works on the folder, on a thread that may block.
    ///
    /// # Errors
    /// If that fails, or the last operation hasn't come back yet.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let Ok(turn) = Arc::clone(&self.turn).try_acquire_owned() else {
            return Err(Error::Io(std::io::ErrorKind::TimedOut.into()));
        };
        let folder = Arc::clone(&self.folder);
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&folder);
            drop(turn);
            done
        });
        done.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}
