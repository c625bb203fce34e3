//! The metrics of a scrape: counters of this process and gauges read from the database, the destination and the
//! connection pools.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::event::DeliveryStatus;
use crate::freshness;
use crate::job::Status;
use crate::service::Service;
use crate::service::schedules::ScheduleAge;
use crate::store::{
    self,
    deliveries::OpenDeliveries,
    gauges::{Backlog, MAX_CONSUMERS, UnacknowledgedAge, WatermarkAge},
    moments::LoggedChanges,
};
use crate::telemetry::metrics::{self, Gauges};
use cdc_dataset::{Capture, Dataset};
use cdc_manifest::{ConsumerId, Lane};
use pg_session::failure::chain;

/// Time for which the gauges are cached, so that several scrapers cause the same load on the database as one.
const SCRAPE_CACHE_TIME: Duration = Duration::from_secs(1);

/// Time limit of each read for a scrape. It is shorter than a client's timeout, because a concurrent scrape waits for
/// the read to end.
const SCRAPE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// The number of lanes that are looked at for those furthest behind: the ones whose last exports are the oldest.
const MAX_LANES: usize = 1_000;

/// A cache for an expensive read. Concurrent callers share one read.
#[derive(Debug, Default)]
pub(crate) struct ReadCache<T>(Mutex<Option<(Instant, T)>>);

impl<T: Clone> ReadCache<T> {
    /// Returns the cached value if it is newer than `age`; otherwise reads again. A caller that arrives during a read
    /// waits for it and gets its result.
    pub(crate) async fn get_or_read<E>(&self, age: Duration, read: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut last = self.0.lock().await;
        if let Some((at, value)) = &*last
            && at.elapsed() < age
        {
            return Ok(value.clone());
        }
        let value = read.await?;
        *last = Some((Instant::now(), value.clone()));
        Ok(value)
    }
}

impl Service {
    /// Returns the metrics in Prometheus's text format. An unavailable database is reported as a metric.
    pub async fn metrics(&self) -> String {
        let read = async { Ok::<_, Infallible>(self.read_gauges().await) };
        let Ok(gauges) = self.cached.metrics.get_or_read(SCRAPE_CACHE_TIME, read).await;
        metrics::counted() + &gauges
    }

    async fn read_gauges(&self) -> String {
        let mut gauges = Gauges::default();
        gauges.set_pool("api", self.store.pool_use());
        if let Some(control) = &self.control {
            gauges.set_pool("control", control.pool_use());
        }
        gauges.set_pool("counting", self.source.pool_use());

        let limit = failpoint::time("service.call", SCRAPE_TIMEOUT);
        let (up, ready, held, read) = tokio::join!(
            timeout(limit, self.ping()),
            timeout(limit, self.require_room()),
            timeout(limit, self.source.held_log_bytes()),
            store::with_timeout(limit, self.read_figures())
        );
        gauges.set(&metrics::DATABASE_UP, &[], f64::from(matches!(up, Ok(Ok(_)))));
        gauges.set(&metrics::OUTPUT_READY, &[], f64::from(matches!(ready, Ok(Ok(())))));
        gauges.set(&metrics::WORKERS_READY, &[], f64::from(self.store.claims_fail().is_none()));
        if let Ok(Ok(bytes)) = held {
            gauges.set(&metrics::CHANGE_LOG_HELD_BYTES, &[], bytes as f64);
        }
        match read {
            Ok(figures) => figures.set_gauges(&mut gauges),
            // Unknown gauges are omitted, because an old value or 0 would be misleading.
            Err(error) => tracing::warn!(event = "metrics_incomplete", error = chain(&error)),
        }
        gauges.text()
    }

    async fn read_figures(&self) -> Result<Figures, store::Error> {
        let datasets: Vec<_> = self.catalog.iter().map(|dataset| dataset.name.as_str()).collect();
        let (logged, others): (Vec<_>, Vec<_>) =
            self.catalog.iter().partition(|dataset| dataset.capture == Capture::Triggers);
        let names = |of: Vec<&Arc<Dataset>>| of.into_iter().map(|dataset| dataset.name.clone()).collect::<Vec<_>>();
        let (logged, timed) = (names(logged), names(others));
        let backlog = self.store.backlog().await?;
        let behind = self.behind_ages(&logged).await?;
        let (ages, others) = self.store.watermark_ages(&timed).await?;
        let unacknowledged = self.store.unacknowledged_ages(&datasets).await?;
        let endpoints: Vec<_> = self.catalog.listeners().iter().map(|listener| listener.name.as_str()).collect();
        let undelivered = self.store.open_deliveries(&endpoints).await?;
        let schedules = self.schedule_ages().await?;
        Ok(Figures { backlog, behind, ages, others, unacknowledged, undelivered, schedules })
    }

    /// Returns the consumers that are furthest behind in these datasets, by the change log.
    async fn behind_ages(&self, datasets: &[String]) -> Result<Vec<BehindAge>, store::Error> {
        let age = |changes: LoggedChanges| {
            let LoggedChanges { consumer, dataset, exist, age } = changes;
            let seconds = match age {
                Some(age) => age.as_secs_f64(),
                None if exist => return None,
                None => 0.0,
            };
            let within = self.catalog.fresh_within(Lane { consumer: &consumer, dataset: &dataset });
            let within = within.unwrap_or(freshness::WITHOUT_HISTORY).as_secs_f64();
            Some(BehindAge { consumer, dataset, seconds, within })
        };
        let changes = self.store.oldest_logged_changes(datasets, MAX_LANES).await?;
        let mut ages: Vec<_> = changes.into_iter().filter_map(age).collect();
        ages.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        ages.truncate(MAX_CONSUMERS);
        Ok(ages)
    }
}

struct BehindAge {
    consumer: ConsumerId,
    dataset: String,
    seconds: f64,
    /// The age up to which it is fresh.
    within: f64,
}

struct Figures {
    backlog: Backlog,
    behind: Vec<BehindAge>,
    ages: Vec<WatermarkAge>,
    others: u64,
    unacknowledged: Vec<UnacknowledgedAge>,
    undelivered: Vec<OpenDeliveries>,
    schedules: Vec<ScheduleAge>,
}

impl Figures {
    fn set_gauges(&self, gauges: &mut Gauges) {
        let Figures { backlog, behind, ages, others, unacknowledged, undelivered, schedules } = self;
        gauges.set(&metrics::QUEUE_JOBS, &[Status::Pending.as_str()], backlog.pending as f64);
        gauges.set(&metrics::QUEUE_JOBS, &[Status::Processing.as_str()], backlog.processing as f64);
        for (metric, value) in [
            (&metrics::QUEUE_OLDEST, backlog.oldest_seconds),
            (&metrics::UNPUBLISHED_JOBS, backlog.unpublished as f64),
            (&metrics::UNPUBLISHED, backlog.unpublished_seconds),
            (&metrics::WATERMARKS_LEFT_OUT, *others as f64),
            (&metrics::POSITIONS_GIVEN_UP, backlog.given_up as f64),
            (&metrics::CHANGE_LOG_ROWS, backlog.log_rows as f64),
            (&metrics::CHANGE_LOG_BYTES, backlog.log_bytes as f64),
            (&metrics::CHANGE_LOG_HELD, backlog.held_seconds),
        ] {
            gauges.set(metric, &[], value);
        }
        for BehindAge { consumer, dataset, seconds, within } in behind {
            gauges.set(&metrics::BEHIND, &[consumer.as_str(), dataset], *seconds);
            gauges.set(&metrics::FRESH_WITHIN, &[consumer.as_str(), dataset], *within);
        }
        for WatermarkAge { consumer, dataset, seconds } in ages {
            gauges.set(&metrics::WATERMARK_AGE, &[consumer.as_str(), dataset], *seconds);
        }
        for UnacknowledgedAge { consumer, dataset, exports, seconds } in unacknowledged {
            gauges.set(&metrics::UNACKNOWLEDGED_EXPORTS, &[consumer.as_str(), dataset], *exports as f64);
            gauges.set(&metrics::UNACKNOWLEDGED, &[consumer.as_str(), dataset], *seconds);
        }
        for OpenDeliveries { endpoint, pending, dead, oldest_seconds } in undelivered {
            gauges.set(&metrics::DELIVERIES_OLDEST, &[endpoint], *oldest_seconds);
            for (status, count) in [(DeliveryStatus::Pending, *pending), (DeliveryStatus::Dead, *dead)] {
                gauges.set(&metrics::DELIVERIES_OPEN, &[endpoint, status.as_str()], count as f64);
            }
        }
        for ScheduleAge { name, overdue, last_run } in schedules {
            gauges.set(&metrics::SCHEDULE_OVERDUE, &[name], overdue.as_seconds_f64());
            if let Some(last_run) = last_run {
                gauges.set(&metrics::SCHEDULE_LAST_RUN, &[name], last_run.as_seconds_f64());
            }
        }
    }
}
