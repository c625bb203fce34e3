//! The heartbeat of one attempt: renews its lease, records its progress, and learns that the attempt must stop.

use std::time::{Duration, Instant};

use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;

use crate::job::{JobId, LeaseToken, Progress};
use crate::store::{
    Store,
    lease::{self, Lease, LeaseRenewer, Renewal},
};

/// The reason why an attempt must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stop {
    /// A client asked to cancel the job.
    #[error("the job was cancelled")]
    CancelAsked,
    /// Another worker has the lease.
    #[error("its lease was lost")]
    LeaseLost,
    /// No answer for two thirds of a lease: the job may soon be taken over.
    #[error("the database did not answer for too long")]
    Silence,
    /// The process is shutting down.
    #[error("the service is shutting down")]
    Shutdown,
}

/// A running heartbeat. Dropped, it ends.
pub(crate) struct Heartbeat {
    task: AbortOnDropHandle<Stop>,
}

impl Heartbeat {
    /// Renews every second, or three times a lease, and when told that the job was cancelled.
    pub(crate) fn start(
        store: &Store,
        lease: &Lease,
        progress: Progress,
        time: Duration,
        cancel_hints: broadcast::Receiver<JobId>,
    ) -> Heartbeat {
        let (lease_renewer, job, token) = (store.lease_renewer(), lease.job.id, lease.token());
        let beating = Beating { lease_renewer, job, token, progress, time, cancel_hints };
        Heartbeat { task: AbortOnDropHandle::new(tokio::spawn(beating.run())) }
    }

    /// Waits until the attempt must stop.
    pub(crate) async fn stopped(&mut self) -> Stop {
        // A heartbeat that panicked renews nothing any more.
        (&mut self.task).await.unwrap_or(Stop::Silence)
    }

    /// Ends the heartbeat. A renewal that the server still works on does no harm: its answer is not read.
    pub(crate) async fn end(mut self) {
        self.task.abort();
        if !self.task.is_finished() {
            let _ = (&mut self.task).await;
        }
    }
}

struct Beating {
    lease_renewer: LeaseRenewer,
    job: JobId,
    token: LeaseToken,
    progress: Progress,
    time: Duration,
    cancel_hints: broadcast::Receiver<JobId>,
}

impl Beating {
    async fn run(mut self) -> Stop {
        let begun = Instant::now();
        let mut answered = begun;
        loop {
            // After a minute progress is shown less often.
            let fast = begun.elapsed() < Duration::from_secs(60);
            let pause = if fast { lease::interval(self.time) } else { Duration::from_secs(5).min(self.time / 3) };
            tokio::select! { () = tokio::time::sleep(pause) => {}, () = cancelled(&mut self.cancel_hints, self.job) => {} }

            let sent = Instant::now();
            // The first renewal connects, which takes several round trips.
            let timeout = self.time / 3;
            match self.lease_renewer.beat(self.job, self.token, self.time, self.progress.read(), timeout).await {
                Ok(Renewal::Held) => answered = sent,
                Ok(Renewal::CancelAsked) => return Stop::CancelAsked,
                Ok(Renewal::Lost) => return Stop::LeaseLost,
                Err(error) => tracing::warn!(event = "heartbeat_failed", jobId = %self.job, error = %error),
            }
            if answered.elapsed() > self.time * 2 / 3 {
                return Stop::Silence;
            }
        }
    }
}

/// Waits until told that this job was cancelled. What was told during the last renewal is still there.
async fn cancelled(hints: &mut broadcast::Receiver<JobId>, job: JobId) {
    loop {
        match hints.recv().await {
            Ok(hinted) if hinted != job => {}
            // The job may be among those that were missed.
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
