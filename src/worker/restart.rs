//! A task of the worker that ends by a defect is begun again.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use crate::worker::{POLL, Worker};

/// Runs a task again when it panics, which is a defect: the task's job is taken over when its lease ends, and other
/// tasks go on.
pub(super) async fn restart_on_panic<S: Clone, F: Future<Output = ()>>(
    stops: S,
    worker: Worker,
    task: impl Fn(Worker, S) -> F,
) {
    while AssertUnwindSafe(task(worker.clone(), stops.clone())).catch_unwind().await.is_err() {
        tracing::error!(event = "worker_panicked");
        tokio::time::sleep(POLL).await;
    }
}
