//! Notifications for workers. Each of Postgres's notifications, and each end of a job in this process, wakes one idle
//! worker or cancels a running attempt.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::Notification;
use crate::telemetry::log_throttle::LogThrottle;
use crate::worker::{Error, Worker};
use pg_session::failure::chain;

/// Forwards notifications from Postgres until `shutdown`. Reconnects if the connection is lost; maintenance looks
/// for jobs in the meantime.
pub(super) async fn listen(worker: Worker, shutdown: CancellationToken) {
    let listening = async {
        let throttle = LogThrottle::default();
        loop {
            if let Err(error) = forward_notifications(&worker).await
                && let Some(times) = throttle.should_log(chain(&error))
            {
                tracing::warn!(event = "listen_failed", error = chain(&error), times);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! { () = shutdown.cancelled() => {}, () = listening => {} }
}

async fn forward_notifications(worker: &Worker) -> Result<(), Error> {
    let mut notifications = worker.store.listen().await?;
    // The notifications of earlier jobs may have been missed.
    worker.store.work().notify_last();
    loop {
        match notifications.next().await? {
            Notification::Work => worker.store.work().notify_last(),
            // The send fails if no export is running.
            Notification::Cancel(job) => drop(worker.cancels.send(job)),
        }
    }
}

/// Wakes an idle worker when a job has ended in this process otherwise than by a worker, until `shutdown`. Another job
/// of the same lane may be waiting.
pub(super) async fn wake(worker: Worker, shutdown: CancellationToken) {
    let mut endings = worker.store.endings();
    let waking = async {
        loop {
            endings.next_of_others().await;
            worker.store.work().notify_last();
        }
    };
    tokio::select! { () = shutdown.cancelled() => {}, () = waking => {} }
}
