//! The shutdown of a process that serves the API or runs exports.
//!
//! After a signal, the process claims no more jobs, and running exports may continue for DRAIN_SECONDS. Then the
//! process returns the running exports to the queue and ends.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::worker::Stops;

/// Returns the stops of a process: `signal` cancels `drain`, and `shutdown` follows after `time`.
pub(super) fn drain_then_shutdown(signal: &CancellationToken, time: Duration) -> Stops {
    if time.is_zero() {
        return Stops { drain: signal.clone(), shutdown: signal.clone() };
    }
    let stops = Stops { drain: signal.clone(), shutdown: CancellationToken::new() };
    let Stops { drain, shutdown } = stops.clone();
    tokio::spawn(async move {
        tokio::select! { () = drain.cancelled() => {}, () = shutdown.cancelled() => return }
        tracing::info!(event = "draining", seconds = time.as_secs());
        tokio::select! {
            () = tokio::time::sleep(time) => {
                tracing::warn!(event = "drain_ended", "DRAIN_SECONDS has passed: returning the running exports to the queue");
                shutdown.cancel();
            }
            () = shutdown.cancelled() => {}
        }
    });
    stops
}
