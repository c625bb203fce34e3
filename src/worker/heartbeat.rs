//! The heartbeat of an attempt: renews the lease, records progress, and detects that the attempt must stop.

use std::time::{Duration, Instant};

use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;

use crate::job::times::Times;
use crate::store::{
    Store,
    lease::{Lease, LeaseRenewer, Renewal},
};
use cdc_capture::CurrentExport;
use cdc_manifest::JobId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stop {
    #[error("the job was cancelled")]
    CancelAsked,
    #[error("its lease was lost")]
    LeaseLost,
    /// The database has not responded for two thirds of a lease. Another worker may soon take over the job.
    #[error("the database did not answer for too long")]
    Silence,
    #[error("the service is shutting down")]
    Shutdown,
}

/// A running heartbeat. It ends when it is dropped.
pub(crate) struct Heartbeat {
    task: AbortOnDropHandle<Stop>,
}

impl Heartbeat {
    /// Renews the lease every second, or at least three times per lease, and when the job is cancelled.
    pub(crate) fn start(
        store: &Store,
        lease: &Lease,
        times: Times,
        current: CurrentExport,
        cancel_hints: broadcast::Receiver<JobId>,
    ) -> Heartbeat {
        let beats = run(store.lease_renewer(lease, times), times, current, cancel_hints);
        Heartbeat { task: AbortOnDropHandle::new(tokio::spawn(beats)) }
    }

    pub(crate) async fn stopped(&mut self) -> Stop {
        // A heartbeat that panicked no longer renews the lease.
        (&mut self.task).await.unwrap_or(Stop::Silence)
    }

    /// A renewal that is still running on the server has no further effect, because its result is not read.
    pub(crate) async fn end(mut self) {
        self.task.abort();
        if !self.task.is_finished() {
            let _ = (&mut self.task).await;
        }
    }
}

async fn run(
    mut lease_renewer: LeaseRenewer,
    times: Times,
    current: CurrentExport,
    mut cancel_hints: broadcast::Receiver<JobId>,
) -> Stop {
    let (job, begun) = (lease_renewer.job(), Instant::now());
    let mut answered = begun;
    loop {
        // After one minute, progress is reported less often.
        let pause = if begun.elapsed() < Duration::from_secs(60) { times.beat } else { times.slow_beat };
        tokio::select! { () = tokio::time::sleep(pause) => {}, () = cancelled(&mut cancel_hints, job) => {} }

        let sent = Instant::now();
        match lease_renewer.beat(current.read()).await {
            Ok(Renewal::Held) => answered = sent,
            Ok(Renewal::CancelAsked) => return Stop::CancelAsked,
            Ok(Renewal::Lost) => return Stop::LeaseLost,
            Err(error) => tracing::warn!(event = "heartbeat_failed", jobId = %job, error = %error),
        }
        if answered.elapsed() > times.silence {
            return Stop::Silence;
        }
    }
}

/// Waits for a notification that this job was cancelled. Notifications received during the last renewal are buffered.
async fn cancelled(hints: &mut broadcast::Receiver<JobId>, job: JobId) {
    loop {
        match hints.recv().await {
            Ok(hinted) if hinted != job => {}
            // After a lag, this job may be among the missed notifications.
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
