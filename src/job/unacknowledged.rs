//! The exports of a lane that the consumer has not acknowledged.

use chrono::{DateTime, Utc};

/// The count of unacknowledged exports stops here.
pub const COUNTED_EXPORTS: u64 = 1_000;

/// The exports that a consumer has not acknowledged. Applies to a consumer that has acknowledged at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unacknowledged {
    /// The number of published exports after the last acknowledged one, at most [`COUNTED_EXPORTS`]. Removed jobs are
    /// not counted.
    pub exports: u64,
    /// The time at which the oldest of these exports was published. `None` if there is none.
    pub since: Option<DateTime<Utc>>,
}
