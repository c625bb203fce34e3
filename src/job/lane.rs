//! A consumer's line of jobs for one dataset.

use chrono::{DateTime, Utc};

use crate::job::ConsumerId;

/// A consumer's jobs for one dataset run one after another; the published ones have numbers.
#[derive(Clone, Copy, Debug)]
pub struct Lane<'a> {
    /// The consumer.
    pub consumer: &'a ConsumerId,
    /// The dataset's name.
    pub dataset: &'a str,
}

/// The most exports without acknowledgement that are counted.
pub const COUNTED_EXPORTS: u64 = 1_000;

/// The exports that a consumer has yet to acknowledge, if it acknowledges any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unacknowledged {
    /// Published exports that come after the last one that was acknowledged, of those that are kept;
    /// [`COUNTED_EXPORTS`] at most.
    pub exports: u64,
    /// When the oldest of them was published; `None`: there is none.
    pub since: Option<DateTime<Utc>>,
}
