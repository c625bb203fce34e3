//! Restart of worker tasks that panic.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use crate::worker::{PAUSE, Worker};

/// Restarts a task after a panic, which is a defect. Another worker takes over the task's job when its lease expires.
/// Other tasks continue.
pub(super) async fn restart_on_panic<S: Clone, F: Future<Output = ()>>(
    stops: S,
    worker: Worker,
    task: impl Fn(Worker, S) -> F,
) {
    while AssertUnwindSafe(task(worker.clone(), stops.clone())).catch_unwind().await.is_err() {
        tracing::error!(event = "worker_panicked");
        tokio::time::sleep(PAUSE).await;
    }
}
