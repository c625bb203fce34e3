//! The times that follow from the duration of a lease.

use std::time::Duration;

/// The times of an attempt and of the tasks beside it. The operator sets the lease alone.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The duration of a lease. A job whose lease is not renewed for this long can be taken over.
    pub lease: Duration,
    /// The interval at which leases are renewed, and at which a process looks for work.
    pub beat: Duration,
    /// The interval at which the lease of an attempt of more than a minute is renewed.
    pub slow_beat: Duration,
    /// The limit of a renewal. The first one opens a connection, which takes several round trips.
    pub renewal: Duration,
    /// The time without an answer to a renewal after which an attempt stops. Another worker may soon take over the job.
    pub silence: Duration,
    /// The limit of one statement. It leaves time for a second try within the lease.
    pub call: Duration,
    /// The limit of a commit, which may wait for locks, and of its tries while the database doesn't answer.
    pub commit: Duration,
    /// The limit of the publication of an export.
    pub publish: Duration,
}

impl Times {
    pub fn of(lease: Duration) -> Times {
        let third = lease / 3;
        Times {
            lease,
            beat: third.min(Duration::from_secs(1)),
            slow_beat: third.min(Duration::from_secs(5)),
            renewal: third,
            silence: lease * 2 / 3,
            call: third.min(Duration::from_secs(10)),
            commit: lease,
            publish: lease,
        }
    }
}
