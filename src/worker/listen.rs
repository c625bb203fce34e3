//! What wakes idle workers and stops running attempts: Postgres's notifications, and the ends of jobs that this process
//! saw.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::Notification;
use crate::telemetry::chain;
use crate::telemetry::log_throttle::LogThrottle;
use crate::worker::{Error, Worker};

/// Passes notifications on, until `shutdown`. Without a connection it tries again; the workers poll meanwhile.
pub(super) async fn listen(worker: Worker, shutdown: CancellationToken) {
    let listening = async {
        let throttle = LogThrottle::default();
        loop {
            if let Err(error) = pass_on(&worker).await
                && let Some(times) = throttle.should_log(chain(&error))
            {
                tracing::warn!(event = "listen_failed", error = chain(&error), times);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! { () = shutdown.cancelled() => {}, () = listening => {} }
}

async fn pass_on(worker: &Worker) -> Result<(), Error> {
    let mut notifications = worker.store.listen().await?;
    loop {
        match notifications.next().await? {
            Notification::Work => worker.work.notify_waiters(),
            // Without a running export nobody listens.
            Notification::Cancel(job) => drop(worker.cancels.send(job)),
        }
    }
}

/// Wakes idle workers when a job has ended, until `shutdown`: its lane waited for that.
pub(super) async fn wake(worker: Worker, shutdown: CancellationToken) {
    let mut endings = worker.store.endings();
    let waking = async {
        loop {
            endings.next().await;
            worker.work.notify_waiters();
        }
    };
    tokio::select! { () = shutdown.cancelled() => {}, () = waking => {} }
}
