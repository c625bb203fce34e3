//! Time limits for the destination during a shutdown.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Time limit of a shutdown for an unresponsive destination. The next process finishes the remaining work: it publishes
/// files and removes drafts.
const DESTINATION_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits for an operation on the destination. Returns `None` if the process is shutting down and the operation exceeds
/// [`DESTINATION_TIMEOUT`].
pub(super) async fn unless_stopped<T>(shutdown: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    let given_up = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DESTINATION_TIMEOUT).await;
    };
    tokio::select! { done = work => Some(done), () = given_up => None }
}
