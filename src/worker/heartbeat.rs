//! The sign of life of one attempt: extends its lease, records its progress, and learns that it must stop.

use std::time::{Duration, Instant};

use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use crate::job::{JobId, LeaseToken, Progress};
use crate::store::{
    Store,
    lease::{self, Lease, LeaseRenewer, Renewal},
};

/// Why an attempt must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Somebody asked to cancel the job.
    CancelAsked,
    /// The lease is somebody else's.
    LeaseLost,
    /// No answer for two thirds of a lease: the job may soon be taken over.
    Silence,
    /// The process ends.
    Shutdown,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stop::CancelAsked => "the job was cancelled",
            Stop::LeaseLost => "its lease was lost",
            Stop::Silence => "the database did not answer for too long",
            Stop::Shutdown => "the service is shutting down",
        })
    }
}

/// A running heartbeat. Dropped, it ends.
pub(crate) struct Heartbeat {
    task: JoinHandle<Stop>,
}

impl Heartbeat {
    /// Beats every second, or three times a lease, and when somebody hints that the job was cancelled.
    pub(crate) fn start(
        store: &Store,
        lease: &Lease,
        progress: Progress,
        time: Duration,
        cancel_hints: broadcast::Receiver<JobId>,
    ) -> Heartbeat {
        let (lease_renewer, job, token) = (store.lease_renewer(), lease.job.id, lease.token());
        let beating = Beating { lease_renewer, job, token, progress, time, cancel_hints };
        Heartbeat { task: tokio::spawn(beating.run()) }
    }

    /// Waits until the attempt must stop.
    pub(crate) async fn stopped(&mut self) -> Stop {
        // A heartbeat that panicked is one that beats no more.
        (&mut self.task).await.unwrap_or(Stop::Silence)
    }

    /// Ends the heartbeat. A beat that the server still works on changes nothing by then: nobody reads its answer.
    pub(crate) async fn end(mut self) {
        self.task.abort();
        if !self.task.is_finished() {
            let _ = (&mut self.task).await;
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.task.abort();
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
            // An export of more than a minute has shown its progress often enough.
            let fast = begun.elapsed() < Duration::from_secs(60);
            let pause = if fast { lease::interval(self.time) } else { Duration::from_secs(5).min(self.time / 3) };
            tokio::select! { () = tokio::time::sleep(pause) => {}, () = cancelled(&mut self.cancel_hints, self.job) => {} }

            let sent = Instant::now();
            // The first beat connects, which takes several round trips.
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

/// Waits for a hint that this job was cancelled. One that came during the last beat is still there.
async fn cancelled(hints: &mut broadcast::Receiver<JobId>, job: JobId) {
    loop {
        match hints.recv().await {
            Ok(hinted) if hinted != job => {}
            // It may be among those that were missed.
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
