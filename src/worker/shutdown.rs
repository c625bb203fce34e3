//! What a worker waits for while its process shuts down.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How long a shutdown waits for a destination that doesn't answer. What it didn't do is done by whoever starts next: a
/// file gets its name, a draft is swept.
const DESTINATION_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits for what a destination does. `None`: the process is shutting down, and the destination takes too long for
/// that.
pub(super) async fn unless_stopped<T>(shutdown: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    let given_up = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DESTINATION_TIMEOUT).await;
    };
    tokio::select! { done = work => Some(done), () = given_up => None }
}
