//! Removes the hidden files of attempts that ended, and of publishers that died.

use std::time::Duration;

use crate::maintenance::{Error, Maintenance};
use crate::sink::Destination;
use crate::store::queue::EndedAttempt;

/// A file that may be somebody's is swept when it was not written to for so long.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

pub(super) async fn round(Maintenance { store, destination, .. }: &Maintenance) -> Result<(), Error> {
    // Listed before the question, so that an attempt which begins in between isn't among them.
    let hidden = destination.hidden_files().await?;
    if hidden.is_empty() {
        return Ok(());
    }
    let mut outcome = Ok(());
    for EndedAttempt { file, is_removable } in store.ended_attempts(hidden).await? {
        let job = file.job;
        match destination.sweep(&file, (!is_removable).then_some(ABANDONED_AFTER)).await {
            Ok(true) => tracing::info!(event = "hidden_file_swept", jobId = %job),
            Ok(false) => {}
            Err(error) => outcome = Err(error.into()),
        }
    }
    outcome
}
