//! Removes the hidden files of ended attempts and of vanished publishers.

use std::time::Duration;

use crate::maintenance::{Error, Maintenance};
use crate::store::queue::EndedAttempt;
use cdc_destination::Destination;

/// The time since its last write after which a hidden file is removed, if its owner is not known to be gone.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

pub(super) async fn round(Maintenance { store, destination, .. }: &Maintenance) -> Result<(), Error> {
    // The files are listed before the query for ended attempts. So the list has no file of an attempt that begins
    // between the two.
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
