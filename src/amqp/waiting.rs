//! The requests that a process has in its hands and that wait to be tried again: they hold no place of those that don't, within bounds.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::telemetry::metrics;

/// How many requests a process tries at a time.
pub(super) const AT_ONCE: u16 = 8;
/// How many requests a process has in its hands at most, those that wait among them.
const MOST: usize = 256;
/// If the bodies of those that wait have more bytes, it takes no further ones in their stead.
const MOST_BYTES: usize = 64 << 20;

/// The requests that wait, of one connection.
pub(super) struct Waiting {
    endpoint: Arc<str>,
    held: Mutex<Held>,
    more: Notify,
    tried: Semaphore,
}

#[derive(Clone, Copy, Default)]
struct Held {
    messages: usize,
    bytes: usize,
}

/// A request that waits, until it is dropped.
pub(super) struct Waits {
    among: Arc<Waiting>,
    bytes: usize,
}

impl Waiting {
    pub(super) fn new(endpoint: Arc<str>) -> Arc<Waiting> {
        let tried = Semaphore::new(AT_ONCE.into());
        Arc::new(Waiting { endpoint, held: Mutex::default(), more: Notify::new(), tried })
    }

    /// A place among those that are tried.
    pub(super) async fn turn(&self) -> SemaphorePermit<'_> {
        self.tried.acquire().await.expect("the semaphore is never closed")
    }

    /// Counts a request with a body of so many bytes among those that wait.
    pub(super) fn add(self: &Arc<Waiting>, bytes: usize) -> Waits {
        self.change(|held| *held = Held { messages: held.messages + 1, bytes: held.bytes + bytes });
        metrics::amqp_requests_wait(&self.endpoint, 1.0);
        self.more.notify_one();
        Waits { among: Arc::clone(self), bytes }
    }

    /// Waits until so many wait that `places` don't leave [`AT_ONCE`] to others, and others may be taken.
    pub(super) async fn outgrows(&self, places: usize) {
        loop {
            let Held { messages, bytes } = self.change(|held| *held);
            if places < messages + usize::from(AT_ONCE) && places < MOST && bytes <= MOST_BYTES {
                return;
            }
            // Whoever began to wait meanwhile left a permit.
            self.more.notified().await;
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        change(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let bytes = self.bytes;
        self.among.change(|held| *held = Held { messages: held.messages - 1, bytes: held.bytes - bytes });
        metrics::amqp_requests_wait(&self.among.endpoint, -1.0);
        // What waits has fewer bytes now.
        self.among.more.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn those_that_wait_leave_their_places_to_others_within_bounds() {
        let waiting = Waiting::new("rabbit".into());
        let outgrows = |places| waiting.outgrows(places).now_or_never().is_some();
        assert!(!outgrows(8));
        let mut held: Vec<_> = (0..8).map(|_| waiting.add(10)).collect();
        assert_eq!([8, 15, 16].map(outgrows), [true, true, false]);
        let large = waiting.add(MOST_BYTES);
        assert!(!outgrows(16), "their bodies take too much memory");
        drop(large);
        held.extend((8..300).map(|_| waiting.add(0)));
        assert_eq!([255, 256].map(outgrows), [true, false]);
        drop(held);
        assert!(!outgrows(8));
    }
}
