//! Removes the files and jobs whose retention has expired.

use crate::file::FileRecord;
use crate::job::Retention;
use crate::maintenance::{Error, Maintenance, Settings};
use crate::sink::Destination;
use crate::store::retention::{PastFile, Retained};

pub(super) async fn round(maintenance: &Maintenance) -> Result<(), Error> {
    let Maintenance { store, destination, settings, .. } = maintenance;
    let Settings { retain_files, retain_jobs, retain_unacked: spare, retain_audit, .. } = *settings;
    let mut outcome = Ok(());
    for (retention, retained) in [(retain_files, Retained::Files), (retain_jobs, Retained::Jobs)] {
        if retention != Retention::default() {
            let id = destination.id().await?;
            let past = store.files_past(&retention, retained, spare, id);
            for file in past.await? {
                // A file that can't be removed must not prevent the removal of the others.
                if let Err(error) = remove(maintenance, file).await {
                    outcome = Err(error);
                }
            }
        }
    }
    if retain_jobs != Retention::default() {
        let jobs = store.forget_jobs_past(&retain_jobs, spare).await?;
        if jobs > 0 {
            tracing::info!(event = "jobs_forgotten", jobs);
        }
    }
    store.forget_audit(retain_audit).await?;
    store.forget_lanes().await?;
    store.forget_destinations().await?;
    outcome
}

async fn remove(Maintenance { store, destination, .. }: &Maintenance, file: PastFile) -> Result<(), Error> {
    let PastFile { record, unacknowledged } = file;
    let FileRecord { job, is_own, .. } = record;
    if is_own {
        for (name, file) in record.files() {
            destination.remove(file, &name).await?;
        }
    }
    // A file of another database is not removed. This database only deletes its record of the file.
    let is_first = store.file_removed(job).await?;
    if is_own {
        tracing::info!(event = "file_removed", jobId = %job, file = record.name);
    }
    // If several processes remove the same file, only the first one logs the warning.
    if let Some(number) = unacknowledged.filter(|_| is_first) {
        tracing::warn!(
            event = "unacknowledged_removed",
            jobId = %job,
            consumerId = record.consumer.as_ref().map(|consumer| consumer.as_str()),
            dataset = record.dataset,
            number,
            "removed an export that its consumer did not acknowledge within RETAIN_UNACKED: if the consumer has not loaded it, request a full export"
        );
    }
    Ok(())
}
