//! Backlog of requests that wait for another attempt.
//!
//! A waiting request must not take the prefetch place of a new one. So the consumer raises its prefetch as the backlog
//! grows, within limits.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::telemetry::metrics;

/// Maximum number of requests that a process submits at the same time.
pub(super) const MAX_CONCURRENT: u16 = 8;
/// Maximum number of requests that a process holds, including the backlog.
const MAX_REQUESTS: usize = 256;
/// Size of the backlog's bodies, in bytes, above which the prefetch is not raised further.
const MAX_BYTES: usize = 64 << 20;

/// The waiting requests of one connection.
pub(super) struct RequestBacklog {
    endpoint: Arc<str>,
    held: Mutex<Held>,
    changed: Notify,
    permits: Semaphore,
}

#[derive(Clone, Copy, Default)]
struct Held {
    messages: usize,
    bytes: usize,
}

/// A request in the backlog. Dropping it removes the request.
pub(super) struct BacklogEntry {
    backlog: Arc<RequestBacklog>,
    bytes: usize,
}

impl RequestBacklog {
    pub(super) fn new(endpoint: Arc<str>) -> Arc<RequestBacklog> {
        let permits = Semaphore::new(MAX_CONCURRENT.into());
        Arc::new(RequestBacklog { endpoint, held: Mutex::default(), changed: Notify::new(), permits })
    }

    /// Waits for a permit to submit a request.
    pub(super) async fn permit(&self) -> SemaphorePermit<'_> {
        self.permits.acquire().await.expect("the semaphore is never closed")
    }

    /// Adds a request whose body has this size in bytes.
    pub(super) fn add(self: &Arc<RequestBacklog>, bytes: usize) -> BacklogEntry {
        self.change(|held| *held = Held { messages: held.messages + 1, bytes: held.bytes + bytes });
        metrics::amqp_requests_wait(&self.endpoint, 1.0);
        self.changed.notify_one();
        BacklogEntry { backlog: Arc::clone(self), bytes }
    }

    /// Waits until the backlog leaves less than [`MAX_CONCURRENT`] of the `prefetch` to new requests, and the limits
    /// permit more.
    pub(super) async fn exceeds_prefetch(&self, prefetch: usize) {
        loop {
            let Held { messages, bytes } = self.change(|held| *held);
            if prefetch < messages + usize::from(MAX_CONCURRENT) && prefetch < MAX_REQUESTS && bytes <= MAX_BYTES {
                return;
            }
            // `notify_one` stores a permit, so a change since the check is not missed.
            self.changed.notified().await;
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        change(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for BacklogEntry {
    fn drop(&mut self) {
        let bytes = self.bytes;
        self.backlog.change(|held| *held = Held { messages: held.messages - 1, bytes: held.bytes - bytes });
        metrics::amqp_requests_wait(&self.backlog.endpoint, -1.0);
        // The backlog may be below its limit of bytes now.
        self.backlog.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_backlog_raises_the_prefetch_within_limits() {
        let backlog = RequestBacklog::new("rabbit".into());
        let exceeds = |prefetch| backlog.exceeds_prefetch(prefetch).now_or_never().is_some();
        assert!(!exceeds(8));
        let mut held: Vec<_> = (0..8).map(|_| backlog.add(10)).collect();
        assert_eq!([8, 15, 16].map(exceeds), [true, true, false]);
        let large = backlog.add(MAX_BYTES);
        assert!(!exceeds(16), "their bodies take too much memory");
        drop(large);
        held.extend((8..300).map(|_| backlog.add(0)));
        assert_eq!([255, 256].map(exceeds), [true, false]);
        drop(held);
        assert!(!exceeds(8));
    }
}
