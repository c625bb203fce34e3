//! Limits on the messages that a broker sends over one connection.
//!
//! lapin keeps in memory whatever arrives before it is read. So the stream below lapin counts the messages, and the
//! caller above lapin permits them: deliveries by the prefetch, and one return for each publishing.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Number of methods of a connection that lapin answers without a caller. A broker that doesn't read the answers could
/// have any number of them queued.
const MAX_ANSWERED: usize = 1_000;

/// The limits of one connection.
pub(super) struct MessageLimits {
    /// Number of messages that the broker may still send.
    messages: AtomicUsize,
    /// Maximum size of the body of a message, in bytes.
    body_bytes: AtomicU64,
    /// Number of methods that lapin may still answer.
    answered: AtomicUsize,
}

impl MessageLimits {
    /// Returns the limits of a broker that may send no message.
    pub(super) fn new() -> MessageLimits {
        MessageLimits {
            messages: AtomicUsize::new(0),
            body_bytes: AtomicU64::new(0),
            answered: AtomicUsize::new(MAX_ANSWERED),
        }
    }

    /// Permits this number of further messages.
    pub(super) fn permit(&self, messages: usize) {
        self.messages.fetch_add(messages, Ordering::SeqCst);
    }

    /// Permits bodies of this size in bytes.
    pub(super) fn permit_body(&self, bytes: usize) {
        self.body_bytes.fetch_max(bytes as u64, Ordering::SeqCst);
    }

    /// Takes the permission of one message back, because the message arrived or because it won't. Returns false if
    /// there is none.
    pub(super) fn take(&self) -> bool {
        take_one(&self.messages)
    }

    /// Counts a method that lapin answers. Returns false if there are too many.
    pub(super) fn answer(&self) -> bool {
        take_one(&self.answered)
    }

    pub(super) fn body_bytes(&self) -> u64 {
        self.body_bytes.load(Ordering::SeqCst)
    }
}

fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}
