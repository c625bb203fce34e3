//! Removes the files and jobs whose retention has expired.

use std::time::{Duration, Instant};

use crate::job::{JobId, Retention};
use crate::maintenance::{Error, Maintenance, Settings};
use crate::sink::Destination;
use crate::store::retention::{LaneCursor, PastFile, PastManifest, Retained, RetentionPage};

/// The time after which a round ends. What is left is the next round's.
const ROUND_TIME: Duration = Duration::from_secs(60);

/// The number of exports whose files are removed together, with one sync of the folder and one record.
const REMOVED_TOGETHER: usize = 100;

/// Removes what is past the retention, in all lanes. Returns false if some of it may be left.
pub(super) async fn round(maintenance: &Maintenance) -> Result<bool, Error> {
    let Maintenance { store, destination, settings, .. } = maintenance;
    let Settings { retain_files, retain_jobs, retain_manifests, retain_unacked: spare, retain_audit, .. } = *settings;
    let begun = Instant::now();
    let mut outcome = Ok(true);
    for (retention, retained) in [(retain_files, Retained::Files), (retain_jobs, Retained::Jobs)] {
        if retention == Retention::default() {
            continue;
        }
        let id = destination.id().await?;
        let mut after = Some(LaneCursor::default());
        while let Some(lane) = after {
            let RetentionPage { found, is_full, next } =
                store.files_past(&retention, retained, spare, id, &lane).await?;
            let removed = remove_all(maintenance, found).await;
            // The files of these lanes that can't be removed would be found again.
            after = if is_full && removed.is_ok() { Some(lane) } else { next };
            outcome = removed.and(outcome);
            if begun.elapsed() > ROUND_TIME {
                return outcome.and(Ok(false));
            }
        }
    }
    if retain_manifests != Retention::default() {
        let id = destination.id().await?;
        let mut after = Some(LaneCursor::default());
        while let Some(lane) = after.filter(|_| begun.elapsed() < ROUND_TIME) {
            let RetentionPage { found, is_full, next } = store.manifests_past(&retain_manifests, id, &lane).await?;
            // In their order, so that a lane has no gap.
            let mut removed = Vec::new();
            let removal = async {
                for PastManifest { record, text } in &found {
                    destination.remove_manifest(record, text).await?;
                    removed.push(record.job);
                }
                Ok::<_, Error>(())
            };
            let removal = removal.await;
            store.manifests_removed(&removed).await?;
            after = if is_full && removal.is_ok() { Some(lane) } else { next };
            outcome = removal.and(outcome);
        }
    }
    if retain_jobs != Retention::default() {
        let has_manifests_removed = retain_manifests != Retention::default();
        let (mut jobs, mut after) = (0, Some(LaneCursor::default()));
        while let Some(lane) = after.filter(|_| begun.elapsed() < ROUND_TIME) {
            let RetentionPage { found, is_full, next } =
                store.forget_jobs_past(&retain_jobs, spare, has_manifests_removed, &lane).await?;
            jobs += found;
            after = if is_full { Some(lane) } else { next };
        }
        if jobs > 0 {
            tracing::info!(event = "jobs_forgotten", jobs);
        }
    }
    store.forget_audit(retain_audit).await?;
    let mut after = Some(LaneCursor::default());
    while let Some(lane) = after {
        after = store.forget_lanes(&lane).await?.next;
    }
    store.forget_destinations().await?;
    outcome.map(|_| begun.elapsed() < ROUND_TIME)
}

/// Removes the files of these exports. A file that can't be removed does not prevent the removal of the others.
async fn remove_all(maintenance: &Maintenance, past: Vec<PastFile>) -> Result<(), Error> {
    let mut outcome = Ok(());
    for together in past.chunks(REMOVED_TOGETHER) {
        if remove(maintenance, together).await.is_err() {
            for alone in together.chunks(1) {
                outcome = remove(maintenance, alone).await.and(outcome);
            }
        }
    }
    outcome
}

async fn remove(Maintenance { store, destination, .. }: &Maintenance, past: &[PastFile]) -> Result<(), Error> {
    // A file of another database is not removed. This database only deletes its record of the file.
    let own = past.iter().filter(|past| past.record.is_own);
    let files: Vec<_> = own.flat_map(|past| past.record.owned_files()).collect();
    destination.remove(&files).await?;
    let jobs: Vec<JobId> = past.iter().map(|past| past.record.job).collect();
    // If several processes remove the same files, only the first one logs it.
    let removed = store.files_removed(&jobs).await?;
    for PastFile { record, unacknowledged } in past.iter().filter(|past| removed.contains(&past.record.job)) {
        let job = record.job;
        if record.is_own {
            tracing::info!(event = "file_removed", jobId = %job, file = record.name);
        }
        if let Some(number) = unacknowledged {
            tracing::warn!(
                event = "unacknowledged_removed",
                jobId = %job,
                consumerId = record.consumer.as_ref().map(|consumer| consumer.as_str()),
                dataset = record.dataset,
                number,
                "removed an export that its consumer did not acknowledge within RETAIN_UNACKED: if the consumer has not loaded it, request a full export"
            );
        }
    }
    Ok(())
}
