//! Turns: how much one caller of a destination may have under way. What blocks has a thread in its turn, as a folder's operations, of which
//! one on a dead network never returns.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::sink::Error;

/// How much one caller of a destination may have under way.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Operations at once; a further one waits for its turn. One that never returns keeps its turn, and its thread: a caller has no more
    /// threads than turns. Bytes that are written to a draft, or read from an opened file, are not among the operations.
    pub at_once: usize,
    /// How long an operation is waited for, its turn included; `None`: for as long as it takes.
    pub timeout: Option<Duration>,
}

/// The turns of one caller. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    turns: Arc<Semaphore>,
    timeout: Option<Duration>,
}

impl Turns {
    pub(super) fn new(limits: Limits) -> Turns {
        Turns { turns: Arc::new(Semaphore::new(limits.at_once)), timeout: limits.timeout }
    }

    /// Does what doesn't block, in a turn of its own.
    ///
    /// # Errors
    /// If that fails, or isn't done in time. It is given up then, and what it did is not known.
    #[cfg(feature = "buckets")]
    pub(super) async fn wait<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let done = async {
            let _turn = self.turns.acquire().await.expect("nobody closes the semaphore");
            work.await
        };
        self.in_time(done).await.unwrap_or_else(|| Err(Error::Unavailable(std::io::ErrorKind::TimedOut.into())))
    }

    /// Runs what blocks on a thread of its own.
    ///
    /// # Errors
    /// If that fails, or isn't done in time. It goes on then, and what it does is not known.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let done = async {
            let turn = Arc::clone(&self.turns).acquire_owned().await.expect("nobody closes the semaphore");
            let work = move || {
                let _turn = turn;
                work()
            };
            tokio::task::spawn_blocking(work).await
        };
        let Some(done) = self.in_time(done).await else { return Err(Error::Io(std::io::ErrorKind::TimedOut.into())) };
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Waits as long as the caller has patience; `None`: longer than that.
    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        match self.timeout {
            None => Some(work.await),
            Some(timeout) => tokio::time::timeout(timeout, work).await.ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_never_returns_keeps_its_turn_and_no_caller_longer_than_its_timeout() {
        let turns = Turns::new(Limits { at_once: 1, timeout: Some(Duration::from_millis(50)) });
        let (release, held) = mpsc::channel::<()>();
        let hangs = turns.run(move || Ok(held.recv().is_ok())).await;
        assert!(matches!(hangs, Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::TimedOut));
        let begun = Arc::new(Semaphore::new(0));
        let begins = Arc::clone(&begun);
        let begin = move || {
            begins.add_permits(1);
            Ok(())
        };
        let behind = turns.run(begin).await;
        assert!(behind.is_err() && begun.available_permits() == 0, "no second thread");
        // Other callers have turns of their own, and the same one has its again when the operation returns.
        assert_eq!(Turns::new(Limits { at_once: 1, timeout: None }).run(|| Ok(1)).await.unwrap(), 1);
        release.send(()).unwrap();
        let patient = Turns { timeout: None, ..turns };
        assert_eq!(patient.run(|| Ok(2)).await.unwrap(), 2);
    }
}
