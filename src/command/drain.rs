//! The way from a signal to the end of a process that serves or works: first no job is claimed, while running ones end,
//! for DRAIN_SECONDS; then running ones are given back, and everything ends.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::worker::Stops;

/// The stops of a process that `signal` ends, with so long for the exports that run then.
pub(super) fn drained(signal: &CancellationToken, time: Duration) -> Stops {
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
                tracing::warn!(event = "drain_ended", "exports that still run are given back: DRAIN_SECONDS has passed");
                shutdown.cancel();
            }
            () = shutdown.cancelled() => {}
        }
    });
    stops
}
