//! Gives committed files their final names, and gives up jobs whose files are missing.

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
    /// Since when a job's file is missing.
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
                        // Who died before it was done may have left what it wrote.
                        maintenance.swept.notify_one();
                        Ok(())
                    }
                    Ok(Publication::Missing(record)) => look_again(publisher, missing, &record).await,
                    Err(error) => {
                        // No proof that the file is missing: a destination that failed may have it.
                        missing.remove(&job);
                        Err(error)
                    }
                }
            } else {
                // Another database names this file, so no lane of this one may wait for it.
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

/// Gives up a job whose file was missing each time for a while.
async fn look_again(
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
