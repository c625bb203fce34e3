//! What a scrape of the metrics shows: what this process counted, and a look at the database, the folder and the pools.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::dataset::catalog::Catalog;
use crate::event::DeliveryStatus;
use crate::failpoint;
use crate::job::{ExportType, FailureCode, Status};
use crate::service::Service;
use crate::service::schedules::ScheduleAge;
use crate::sink::Destination;
use crate::store::{
    self,
    deliveries::OpenDeliveries,
    gauges::{Backlog, UnacknowledgedAge, WatermarkAge},
};
use crate::telemetry::chain;
use crate::telemetry::metrics::{self, ExportLabels, Gauges};

/// A look serves every scrape that comes so soon after it: several scrapers cost the database what one costs.
const LOOK_LASTS: Duration = Duration::from_secs(1);

/// How long a look waits for each thing. Less than a client's timeout: who comes in its middle waits for its end.
const SCRAPE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// A look that serves all who come soon after it.
#[derive(Debug, Default)]
pub(crate) struct LastLook<T>(Mutex<Option<(Instant, T)>>);

impl<T: Clone> LastLook<T> {
    /// Returns what the last look saw if it is so recent, else looks again. Whoever comes during a look waits for it,
    /// and takes what it saw.
    pub(crate) async fn within<E>(&self, age: Duration, look: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut last = self.0.lock().await;
        if let Some((at, seen)) = &*last
            && at.elapsed() < age
        {
            return Ok(seen.clone());
        }
        let seen = look.await?;
        *last = Some((Instant::now(), seen.clone()));
        Ok(seen)
    }
}

/// Lets the counters of everything that may be exported begin at 0.
pub(crate) fn init_series(catalog: &Catalog) {
    for (dataset, export_type) in catalog.iter().flat_map(|d| ExportType::ALL.iter().map(move |t| (d, t))) {
        let ends = Status::ALL.iter().filter(|status| status.is_terminal()).map(|status| status.as_str());
        let codes = FailureCode::ALL.iter().map(|code| code.as_str());
        metrics::init_series(ExportLabels { dataset: &dataset.name, export_type: export_type.as_str() }, ends, codes);
    }
    catalog.schedules().iter().for_each(|schedule| metrics::init_schedule(&schedule.name));
}

impl Service {
    /// The metrics, in Prometheus's text format. A database that can't be reached is one of them.
    pub async fn metrics(&self) -> String {
        let look = async { Ok::<_, Infallible>(self.look().await) };
        let Ok(seen) = self.last_look.within(LOOK_LASTS, look).await;
        metrics::counted() + &seen
    }

    async fn look(&self) -> String {
        let mut gauges = Gauges::default();
        let pools = [("api", &self.store), ("probe", &self.probe)].into_iter();
        for (name, store) in pools.chain(self.control.iter().map(|control| ("control", control))) {
            gauges.set_pool(name, store.pool_use());
        }
        gauges.set_pool("counting", self.source.pool_use());

        let limit = failpoint::time("service.call", SCRAPE_TIMEOUT);
        let (up, ready, read) = tokio::join!(
            timeout(limit, self.ping()),
            timeout(limit, self.destination.require_room()),
            store::with_timeout(limit, self.read())
        );
        gauges.set(&metrics::DATABASE_UP, &[], f64::from(matches!(up, Ok(Ok(())))));
        gauges.set(&metrics::OUTPUT_READY, &[], f64::from(matches!(ready, Ok(Ok(())))));
        match read {
            Ok(figures) => figures.show(&mut gauges),
            // A number that isn't known isn't shown: an old one, or 0, would be believed.
            Err(error) => tracing::warn!(event = "metrics_incomplete", error = chain(&error)),
        }
        gauges.text()
    }

    async fn read(&self) -> Result<Figures, store::Error> {
        let datasets: Vec<_> = self.catalog.iter().map(|dataset| dataset.name.as_str()).collect();
        let backlog = self.store.backlog().await?;
        let (ages, others) = self.store.watermark_ages(&datasets).await?;
        let unacknowledged = self.store.unacknowledged_ages(&datasets).await?;
        let endpoints: Vec<_> = self.catalog.listeners().iter().map(|listener| listener.name.as_str()).collect();
        let undelivered = self.store.open_deliveries(&endpoints).await?;
        let schedules = self.schedule_ages().await?;
        Ok(Figures { backlog, ages, others, unacknowledged, undelivered, schedules })
    }
}

/// What the database knows.
struct Figures {
    backlog: Backlog,
    ages: Vec<WatermarkAge>,
    others: u64,
    unacknowledged: Vec<UnacknowledgedAge>,
    undelivered: Vec<OpenDeliveries>,
    schedules: Vec<ScheduleAge>,
}

impl Figures {
    fn show(&self, gauges: &mut Gauges) {
        let Figures { backlog, ages, others, unacknowledged, undelivered, schedules } = self;
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
            (&metrics::CHANGE_LOG_HELD_ROWS, backlog.held_rows as f64),
            (&metrics::CHANGE_LOG_HELD, backlog.held_seconds),
        ] {
            gauges.set(metric, &[], value);
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
