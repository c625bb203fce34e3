//! The limit on the time for which a write makes no progress.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Error;

/// The pause between two looks for a call that has stalled.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Returns the longest time that a write waits for a destination without any progress.
pub fn stall_limit() -> Duration {
    failpoint::time("sink.stall", Duration::from_secs(300))
}

/// Notices calls of an attempt's drafts that don't return. Clones watch the same calls.
#[derive(Clone, Debug, Default)]
pub struct StallWatch(Arc<Mutex<Vec<Arc<Instant>>>>);

impl StallWatch {
    pub(super) fn begin(&self) -> CallUnderWay {
        let begun = Arc::new(Instant::now());
        self.calls().push(Arc::clone(&begun));
        CallUnderWay { begun, watch: self.clone() }
    }

    fn calls(&self) -> MutexGuard<'_, Vec<Arc<Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an error once a call has not returned for `limit`. Without a limit it never returns.
    pub async fn stalled(&self, limit: Option<Duration>) -> Error {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            tokio::time::sleep(WATCH_INTERVAL.min(limit)).await;
            if self.calls().first().is_some_and(|oldest| oldest.elapsed() >= limit) {
                return Error::Stalled(limit.as_secs());
            }
        }
    }
}

pub(super) struct CallUnderWay {
    begun: Arc<Instant>,
    watch: StallWatch,
}

impl Drop for CallUnderWay {
    fn drop(&mut self) {
        self.watch.calls().retain(|begun| !Arc::ptr_eq(begun, &self.begun));
    }
}
