//! Publishes committed files, and fails jobs whose files are missing.

use std::collections::HashMap;
use std::time::Instant;

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

impl Publish {
    pub(super) fn new(maintenance: Maintenance) -> Publish {
        let Maintenance { store, destination, settings, .. } = &maintenance;
        let publisher = Publisher::new(store, destination, &settings.publisher, settings.lease);
        Publish { maintenance, publisher, missing: HashMap::new(), throttle: LogThrottle::default() }
    }

    pub(super) async fn round(&mut self) -> Result<(), Error> {
        let Publish { maintenance, publisher, missing, throttle } = self;
        let id = maintenance.destination.id().await?;
        let unpublished = maintenance.store.unpublished(id).await?;
        missing.retain(|job, _| unpublished.iter().any(|record| record.job == *job));
        for record in unpublished {
            let job = record.job;
            let outcome = if record.is_own {
                match publisher.publish(record).await {
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
                }
            } else {
                // A service on another database publishes this file, so a lane of this database must not wait for it.
                publisher.give_up(&record).await
            };
            if let Err(error) = outcome
                && let Some(times) = throttle.should_log(format!("{job} {}", chain(&error)))
            {
                tracing::error!(event = "publish_failed", jobId = %job, error = chain(&error), times);
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
