//! Publishes committed files, and fails exports whose files are missing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::file::FileRecord;
use crate::job::not_published;
use crate::maintenance::{Error, Maintenance};
use crate::publisher::{self, Publication, Publisher};
use crate::store::files::LOST_AFTER;
use crate::telemetry::log_throttle::LogThrottle;
use cdc_destination::{Destination, ExportFiles};
use cdc_manifest::{ConsumerId, JobId};
use pg_session::failure::chain;

pub(super) struct Publish {
    maintenance: Maintenance,
    publisher: Publisher,
    /// The time at which an export's file was first found missing.
    missing: HashMap<ExportKey, Instant>,
    throttle: LogThrottle,
}

/// The number of lanes whose exports are published at once. A slow file delays only its own lane.
const MAX_LANES: usize = 4;

/// An export: its job and its dataset.
type ExportKey = (JobId, String);

/// The lane of an export, or the job of an export without a lane.
type LaneKey = Result<(ConsumerId, String), JobId>;

type PublicationResult = (ExportKey, Result<Publication, publisher::Error>);

impl Publish {
    pub(super) fn new(maintenance: &Maintenance) -> Publish {
        let maintenance = maintenance.with_concurrent(MAX_LANES);
        let Maintenance { store, destination, settings, .. } = &maintenance;
        let publisher = Publisher::new(store, destination, &settings.publisher, settings.times);
        Publish { maintenance, publisher, missing: HashMap::new(), throttle: LogThrottle::default() }
    }

    /// Publishes until nothing is under way. Exports that are committed meanwhile don't wait for a slow one.
    pub(super) async fn round(&mut self) -> Result<(), Error> {
        let mut looks = tokio::time::interval(self.maintenance.look_period());
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Tasks, because a lane that isn't polled could keep what a look waits for.
        let (mut busy, mut waiting, mut under_way) = (HashSet::new(), VecDeque::new(), JoinSet::new());
        loop {
            tokio::select! {
                biased;
                _ = looks.tick() => {
                    let lanes = self.unpublished().await?;
                    waiting.extend(lanes.into_iter().filter(|(lane, _)| busy.insert(lane.clone())));
                }
                Some(done) = under_way.join_next() => {
                    let (lane, outcomes) = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
                    busy.remove(&lane);
                    for outcome in outcomes {
                        self.end(outcome).await;
                    }
                }
            }
            while under_way.len() < MAX_LANES
                && let Some((lane, records)) = waiting.pop_front()
            {
                under_way.spawn(publish(self.publisher.clone(), lane, records));
            }
            if under_way.is_empty() {
                return Ok(());
            }
        }
    }

    /// Returns the unpublished exports of each lane, in their order. Logs those that wait at another destination.
    async fn unpublished(&mut self) -> Result<HashMap<LaneKey, Vec<FileRecord>>, Error> {
        let Maintenance { store, destination, .. } = &self.maintenance;
        let here = destination.id().await?;
        let unpublished = store.unpublished(here).await?;
        let is_of = |files: &ExportFiles, (job, dataset): &ExportKey| files.job == *job && files.dataset == *dataset;
        self.missing.retain(|key, _| unpublished.iter().any(|record| is_of(&record.files, key)));
        let mut lanes = HashMap::<_, Vec<_>>::new();
        for record in unpublished {
            let ExportFiles { job, consumer, dataset, parts, .. } = &record.files;
            if record.is_own && parts.iter().any(|part| part.staged.destination != here) {
                self.end(((*job, dataset.clone()), Err(cdc_destination::Error::Elsewhere.into()))).await;
                continue;
            }
            let lane = consumer.clone().map(|consumer| (consumer, dataset.clone())).ok_or(*job);
            lanes.entry(lane).or_default().push(record);
        }
        Ok(lanes)
    }

    async fn end(&mut self, (key, outcome): PublicationResult) {
        let outcome = match outcome {
            Ok(Publication::Done) => {
                // The process that died before the publication may have left a hidden file behind.
                self.maintenance.sweep_requested.notify_one();
                Ok(())
            }
            // The file is lost if it has been missing in every round for longer than `LOST_AFTER`.
            Ok(Publication::Missing(record)) => {
                let first = *self.missing.entry(key.clone()).or_insert_with(|| {
                    tracing::warn!(event = "staged_file_missing", jobId = %record.files.job, file = record.files.name);
                    Instant::now()
                });
                if first.elapsed() > LOST_AFTER { self.publisher.give_up(&record).await } else { Ok(()) }
            }
            Err(error) => {
                // The failed destination may have the file, so the time of its absence starts again.
                self.missing.remove(&key);
                Err(error)
            }
        };
        if let Err(error) = outcome
            && let (job, dataset) = key
            && let error = chain(&error)
            && let Some(times) = self.throttle.should_log(format!("{job} {error}"))
        {
            let remedy = not_published(job);
            tracing::error!(event = "publish_failed", jobId = %job, dataset, error, times, "{remedy}");
        }
    }
}

/// Publishes the exports of a lane, one after the other.
async fn publish(publisher: Publisher, lane: LaneKey, records: Vec<FileRecord>) -> (LaneKey, Vec<PublicationResult>) {
    let mut outcomes = Vec::new();
    for record in records {
        let key = (record.files.job, record.files.dataset.clone());
        let outcome = match record.is_own {
            true => publisher.publish(record).await,
            // A service on another database publishes it, so a lane of this database must not wait for it.
            false => publisher.give_up(&record).await.map(|()| Publication::Done),
        };
        outcomes.push((key, outcome));
    }
    (lane, outcomes)
}
