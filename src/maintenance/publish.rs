//! Publishes committed files, and fails jobs whose files are missing.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Instant;

use futures_util::{StreamExt, stream};

use crate::file::FileRecord;
use crate::job::JobId;
use crate::maintenance::{Error, Maintenance};
use crate::publisher::{self, Publication, Publisher};
use crate::sink::Destination;
use crate::store::files::LOST_AFTER;
use crate::telemetry::chain;
use crate::telemetry::log_throttle::LogThrottle;

pub(super) struct Publish {
    maintenance: Maintenance,
    publisher: Publisher,
    /// The time at which a job's file was first found missing.
    missing: HashMap<JobId, Instant>,
    throttle: LogThrottle,
}

/// The number of lanes whose exports are published at once. A slow file delays only its own lane.
const MAX_LANES: usize = 4;

impl Publish {
    pub(super) fn new(maintenance: &Maintenance) -> Publish {
        let maintenance = maintenance.with_concurrent(MAX_LANES);
        let Maintenance { store, destination, settings, .. } = &maintenance;
        let publisher = Publisher::new(store, destination, &settings.publisher, settings.lease);
        Publish { maintenance, publisher, missing: HashMap::new(), throttle: LogThrottle::default() }
    }

    pub(super) async fn round(&mut self) -> Result<(), Error> {
        let Publish { maintenance, publisher, missing, throttle } = self;
        let id = maintenance.destination.id().await?;
        let unpublished = maintenance.store.unpublished(id).await?;
        missing.retain(|job, _| unpublished.iter().any(|record| record.job == *job));
        let mut lanes = HashMap::<_, Vec<_>>::new();
        for record in unpublished {
            // An export without a consumer has no lane.
            let lane = record.consumer.clone().map(|consumer| (consumer, record.dataset.clone())).ok_or(record.job);
            lanes.entry(lane).or_default().push(record);
        }
        let publish = async |lane: Vec<FileRecord>| {
            let mut outcomes = Vec::new();
            for record in lane {
                let job = record.job;
                // A service on another database publishes the other files, so a lane of this database must not wait for
                // them.
                outcomes.push((
                    job,
                    match record.is_own {
                        true => publisher.publish(record).await,
                        false => publisher.give_up(&record).await.map(|()| Publication::Done),
                    },
                ));
            }
            outcomes
        };
        let mut published = pin!(stream::iter(lanes.into_values()).map(publish).buffer_unordered(MAX_LANES));
        while let Some(outcomes) = published.next().await {
            for (job, outcome) in outcomes {
                let outcome = match outcome {
                    Ok(Publication::Done) => {
                        // The process that died before the publication may have left a hidden file behind.
                        maintenance.sweep_requested.notify_one();
                        Ok(())
                    }
                    Ok(Publication::Missing(record)) => give_up_if_lost(publisher, missing, &record).await,
                    Err(error) => {
                        // The failed destination may have the file, so the time of its absence starts again.
                        missing.remove(&job);
                        Err(error)
                    }
                };
                if let Err(error) = outcome
                    && let Some(times) = throttle.should_log(format!("{job} {}", chain(&error)))
                {
                    tracing::error!(event = "publish_failed", jobId = %job, error = chain(&error), times);
                }
            }
        }
        Ok(())
    }
}

/// Fails a job whose file has been missing in every round for longer than [`LOST_AFTER`].
async fn give_up_if_lost(
    publisher: &Publisher,
    missing: &mut HashMap<JobId, Instant>,
    record: &FileRecord,
) -> Result<(), publisher::Error> {
    let first = *missing.entry(record.job).or_insert_with(|| {
        tracing::warn!(event = "staged_file_missing", jobId = %record.job, file = record.name);
        Instant::now()
    });
    if first.elapsed() > LOST_AFTER { publisher.give_up(record).await } else { Ok(()) }
}
