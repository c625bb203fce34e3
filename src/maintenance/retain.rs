//! Removes the files and jobs whose retention has expired.

use std::time::{Duration, Instant};

use crate::job::Retention;
use crate::maintenance::{Error, Maintenance, Settings};
use crate::store::retention::{LaneCursor, Limits, PastFile, PastManifest, Retained, RetentionPage};
use cdc_destination::Destination;

/// The time after which a round ends. What is left is the next round's.
const ROUND_TIME: Duration = Duration::from_secs(60);

/// The number of exports whose files are removed together, with one sync of the folder and one record.
const REMOVED_TOGETHER: usize = 100;

struct RoundTime {
    begun: Instant,
    /// True once the round has taken its time before it was through all lanes.
    is_over: bool,
}

impl RoundTime {
    /// Returns the next place among the lanes, or `None` if there is none or the round has taken its time.
    fn within(&mut self, next: Option<LaneCursor>) -> Option<LaneCursor> {
        self.is_over |= next.is_some() && self.begun.elapsed() > ROUND_TIME;
        next.filter(|_| !self.is_over)
    }
}

/// Removes what is past the retention, in all lanes. Returns false if some of it may be left.
pub(super) async fn round(maintenance: &Maintenance) -> Result<bool, Error> {
    let Maintenance { store, destination, settings, clocks, .. } = maintenance;
    let Settings { retain_files, retain_jobs, retain_unacked: spare, .. } = *settings;
    let limits = |retention| Limits { retention, spare, now: clocks.now() };
    let mut time = RoundTime { begun: Instant::now(), is_over: false };
    let first = || Some(LaneCursor::default());
    let mut outcome = Ok(());
    for (retention, retained) in [(retain_files, Retained::Files), (retain_jobs, Retained::Jobs)] {
        if retention == Retention::default() {
            continue;
        }
        let id = destination.id().await?;
        let mut place = first();
        while let Some(after) = time.within(place) {
            let RetentionPage { found, next, end } = store.files_past(&limits(retention), retained, id, &after).await?;
            let removed = remove_all(maintenance, found).await;
            // Files that can't be removed would be found again.
            place = if removed.is_ok() { next } else { end };
            outcome = removed.and(outcome);
        }
    }
    if retain_jobs != Retention::default() {
        let writes_manifests = settings.publisher.writes_manifests;
        if writes_manifests {
            let id = destination.id().await?;
            let mut place = first();
            while let Some(after) = time.within(place) {
                let RetentionPage { found, next, end } = store.manifests_past(&limits(retain_jobs), id, &after).await?;
                let removed = remove_manifests(maintenance, &found).await;
                place = if removed.is_ok() { next } else { end };
                outcome = removed.and(outcome);
            }
        }
        let (mut exports, mut place) = (0, first());
        while let Some(after) = time.within(place) {
            let page = store.forget_jobs_past(&limits(retain_jobs), writes_manifests, &after).await?;
            exports += page.found;
            place = page.next;
        }
        if exports > 0 {
            tracing::info!(event = "jobs_forgotten", exports);
        }
    }
    // The change log keeps changes up to twice that age.
    store.thin_moments(2 * settings.log_caps.age, clocks.now()).await?;
    let mut place = first();
    while let Some(after) = time.within(place) {
        place = store.forget_lanes(&after).await?.next;
    }
    if let Some(now) = clocks.now() {
        store.forget_destinations(now).await?;
    }
    outcome.map(|()| !time.is_over)
}

/// Removes manifests in their order, so that no lane has a gap, until one can't be removed.
async fn remove_manifests(
    Maintenance { store, destination, .. }: &Maintenance,
    past: &[PastManifest],
) -> Result<(), Error> {
    let (mut removed, mut outcome) = (Vec::new(), Ok(()));
    for PastManifest { record, text } in past {
        outcome = destination.remove_manifest(&record.files, text).await;
        if outcome.is_err() {
            break;
        }
        removed.push((record.files.job, &*record.files.dataset));
    }
    store.manifests_removed(&removed).await?;
    Ok(outcome?)
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
    let files: Vec<_> = own.flat_map(|past| past.record.files.owned()).collect();
    destination.remove(&files).await?;
    let exports: Vec<_> = past.iter().map(|past| (past.record.files.job, &*past.record.files.dataset)).collect();
    // If several processes remove the same files, only the first one logs it.
    let removed = store.files_removed(&exports).await?;
    let is_removed = |past: &&PastFile| {
        removed.iter().any(|(job, dataset)| *job == past.record.files.job && *dataset == past.record.files.dataset)
    };
    for PastFile { record, unacknowledged } in past.iter().filter(is_removed) {
        let job = record.files.job;
        if record.is_own {
            tracing::info!(event = "file_removed", jobId = %job, file = record.files.name);
        }
        if let Some(number) = unacknowledged {
            tracing::warn!(
                event = "unacknowledged_removed",
                jobId = %job,
                consumerId = record.files.consumer.as_ref().map(|consumer| consumer.as_str()),
                dataset = record.files.dataset,
                number,
                "removed an export that its consumer did not acknowledge within RETAIN_UNACKED: if the consumer has not loaded it, request a full export"
            );
        }
    }
    Ok(())
}
