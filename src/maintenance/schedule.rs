//! Submits the exports of schedules when they are due.
//!
//! Each process that runs exports does this. The rows of `store::schedules` ensure that one process submits each.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::{StreamExt, stream};
use serde_json::json;
use uuid::Uuid;

use crate::audit::{Action, Origin};
use crate::job::datasets::{DatasetsRequest, MOST_DATASETS, Omitted};
use crate::maintenance::{Error, Maintenance};
use crate::schedule::{Due, Refusal, Schedule, ScheduleState, ScheduledDatasets};
use crate::store;
use crate::store::schedules::{RunOutcome, ScheduledExports};
use crate::store::tracked::Obstacle;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics;
use cdc_destination::Destination;

/// The number of schedules that are advanced at the same time. Each takes a dozen round trips to Postgres.
const MAX_CONCURRENT: usize = 4;

/// The exports of a due slot, or the reason why they can't be submitted now.
enum SlotExports {
    Ready(ScheduledExports),
    Refused(Refusal),
}

pub(super) struct Scheduling {
    maintenance: Maintenance,
    /// The timings of the schedules that the database has as this process has them.
    adopted: Mutex<BTreeMap<String, String>>,
    throttle: LogThrottle,
}

impl Scheduling {
    pub(super) fn new(maintenance: Maintenance) -> Scheduling {
        Scheduling { maintenance, adopted: Mutex::default(), throttle: LogThrottle::default() }
    }

    /// Performs the next action of a schedule: adopts a changed timing, or runs the due slot.
    async fn advance(&self, schedule: &Schedule, state: ScheduleState, now: DateTime<Utc>) -> Result<(), Error> {
        let timing = schedule.timing.to_string();
        if self.adopted().get(&schedule.name) != Some(&timing) {
            let adoption = needs_adoption(schedule, &state, now);
            if let Some(latest) = adoption {
                self.maintenance.store.adopt_timing(schedule, latest).await?;
            }
            self.adopted().insert(schedule.name.clone(), timing);
            if adoption.is_some() {
                // The next round reads the new state.
                return Ok(());
            }
        }
        match schedule.due(state.slot, now) {
            Due::Nothing => Ok(()),
            Due::Slot(slot) => self.run(schedule, slot).await,
            Due::ClockSetBack(latest) => {
                let Some(from) = state.slot else { return Ok(()) };
                let set_back = self.maintenance.store.set_slot_back(schedule, from, latest);
                if set_back.await? {
                    tracing::warn!(
                        event = "schedule_clock_set_back",
                        schedule = schedule.name,
                        slot = rfc3339(from),
                        "the database's clock is far behind the last used slot: the schedule continues from the current time of the clock"
                    );
                }
                Ok(())
            }
        }
    }

    async fn run(&self, schedule: &Schedule, slot: DateTime<Utc>) -> Result<(), Error> {
        let exports = match self.exports(schedule).await? {
            SlotExports::Ready(exports) => exports,
            SlotExports::Refused(refusal) => return self.refuse(schedule, slot, refusal).await,
        };
        let destination = self.destination_id().await;
        let Maintenance { store, terms, .. } = &self.maintenance;
        let asked = store.run_slot(schedule, slot, &exports, destination, *terms);
        match asked.await? {
            RunOutcome::Job(job) => {
                metrics::schedule_slot(&schedule.name, "run");
                let origin = Origin::schedule(&schedule.name);
                job.exports.iter().for_each(|export| origin.log_job(Action::Export, export));
                tracing::info!(
                    event = "export_submitted",
                    jobId = %job.id(),
                    consumerId = schedule.consumer.as_str(),
                    dataset = job.datasets.is_none().then(|| &*job.first().dataset),
                    exportType = %job.export_type(),
                    datasets = job.datasets.as_ref().map(|_| job.exports.len()),
                    schedule = schedule.name,
                    slot = rfc3339(slot),
                );
                Ok(())
            }
            RunOutcome::Settled => Ok(()),
            RunOutcome::Busy => self.skip(schedule, slot).await,
            RunOutcome::TooManyOpen => self.refuse(schedule, slot, Refusal::TooManyOpenJobs).await,
        }
    }

    /// Skips a slot whose lane is busy. Its changes are in the open export or in the next one.
    async fn skip(&self, schedule: &Schedule, slot: DateTime<Utc>) -> Result<(), Error> {
        let Scheduling { maintenance, throttle, .. } = self;
        if !maintenance.store.skip_slot(schedule, slot).await? {
            return Ok(());
        }
        metrics::schedule_slot(&schedule.name, "skipped");
        // Slots may be less than a minute apart, so the log line is throttled.
        if let Some(times) = throttle.should_log(schedule.name.clone()) {
            tracing::warn!(
                event = "schedule_skipped",
                schedule = schedule.name,
                consumerId = schedule.consumer.as_str(),
                dataset = named(&schedule.datasets),
                slot = rfc3339(slot),
                times,
                "skipped a slot: an export of the consumer is still open in one of these datasets"
            );
        }
        Ok(())
    }

    /// Records the reason why the export of a due slot can't be submitted now. The slot stays due. Logs the reason
    /// only once, even if more slots pass.
    async fn refuse(&self, schedule: &Schedule, slot: DateTime<Utc>, why: Refusal) -> Result<(), Error> {
        let Scheduling { maintenance, .. } = self;
        if maintenance.store.refuse_slot(schedule, slot, why).await? {
            metrics::schedule_slot(&schedule.name, "refused");
            tracing::warn!(
                event = "schedule_refused",
                schedule = schedule.name,
                consumerId = schedule.consumer.as_str(),
                dataset = named(&schedule.datasets),
                slot = rfc3339(slot),
                code = why.as_str(),
                "can't submit the export of a due slot: the schedule retries every second"
            );
        }
        Ok(())
    }

    async fn exports(&self, schedule: &Schedule) -> Result<SlotExports, Error> {
        let catalog = self.maintenance.catalog.get();
        let (wanted, heals) = (schedule.export_type, schedule.heals);
        let request = |name: &String| schedule.request(name, catalog.healed_type(name, wanted, heals));
        let (datasets, left_out) = match &schedule.datasets {
            ScheduledDatasets::One(dataset) => {
                let exports = ScheduledExports { requests: vec![request(dataset)], datasets: None };
                return Ok(self
                    .refusal(schedule, dataset)
                    .await?
                    .map_or(SlotExports::Ready(exports), SlotExports::Refused));
            }
            ScheduledDatasets::Listed(names) => {
                let (ready, _) = self.ready(schedule, |dataset| names.contains(dataset)).await?;
                for name in names.iter().filter(|name| !ready.contains(name)) {
                    if let Some(refusal) = self.refusal(schedule, name).await? {
                        return Ok(SlotExports::Refused(refusal));
                    }
                }
                (names.clone(), Vec::new())
            }
            ScheduledDatasets::All => self.ready(schedule, |_| true).await?,
        };
        match datasets.len() {
            0 => return Ok(SlotExports::Refused(Refusal::NothingReady)),
            count if count > MOST_DATASETS => return Ok(SlotExports::Refused(Refusal::TooManyDatasets)),
            _ => {}
        }
        let requests = datasets.iter().map(request).collect();
        let request = json!({ "schedule": schedule.name });
        let datasets = Some(DatasetsRequest { request, export_type: wanted, datasets, left_out });
        Ok(SlotExports::Ready(ScheduledExports { requests, datasets }))
    }

    /// Returns those of the wanted datasets that are ready, in the order of their names, and the others.
    async fn ready(
        &self,
        schedule: &Schedule,
        is_wanted: impl Fn(&String) -> bool,
    ) -> Result<(Vec<String>, Vec<Omitted>), Error> {
        let catalog = self.maintenance.catalog.get();
        let datasets: Vec<_> = catalog.iter().filter(|dataset| is_wanted(&dataset.name)).cloned().collect();
        let described = self.maintenance.source.describe(&datasets).await?;
        let (mut ready, left_out) = catalog.split_ready(&described, schedule.export_type, schedule.heals);
        ready.sort();
        Ok((ready, left_out))
    }

    /// `Service::submit` refuses requests for the same reasons.
    async fn refusal(&self, schedule: &Schedule, dataset: &str) -> Result<Option<Refusal>, Error> {
        let Maintenance { store, source, catalog, .. } = &self.maintenance;
        let catalog = catalog.get();
        let Some(dataset) = catalog.get(dataset) else { return Ok(Some(Refusal::NoDataset)) };
        if !dataset.allows(dataset.healed_type(schedule.export_type, schedule.heals)) {
            return Ok(Some(Refusal::FullOnly));
        }
        let table = match store.check_table(dataset).await {
            Err(store::Error::Denied(_)) => return Ok(Some(Refusal::PermissionDenied)),
            table => table?,
        };
        if !table.is_readable && source.unreadable(dataset).await?.is_some() {
            return Ok(Some(Refusal::PermissionDenied));
        }
        Ok(table.tracking.obstacle(dataset, Some(&schedule.consumer)).map(|obstacle| match obstacle {
            Obstacle::NoTable => Refusal::TableMissing,
            Obstacle::NotTracked => Refusal::NotTracked,
        }))
    }

    /// Returns `None` if the destination fails or hangs. The worker then reports the reason when the job fails.
    async fn destination_id(&self) -> Option<Uuid> {
        let Maintenance { settings, destination, .. } = &self.maintenance;
        tokio::time::timeout(settings.times.call, destination.id()).await.ok()?.ok()
    }

    fn adopted(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn round(&self) -> Result<(), Error> {
        let schedules = self.maintenance.catalog.get().schedules().to_vec();
        let (now, mut states) = self.maintenance.store.schedule_states(&schedules).await?;
        let advances = schedules.into_iter().map(|schedule| {
            let state = states.remove(&schedule.name).unwrap_or_default();
            async move { self.advance(&schedule, state, now).await }
        });
        // A failed schedule must not delay the others.
        let done: Vec<_> = stream::iter(advances).buffer_unordered(MAX_CONCURRENT).collect().await;
        done.into_iter().collect()
    }
}

/// Returns the slot up to which all slots count as used, if the timing in the database must be replaced. That is so for
/// a schedule with a changed timing, and for a new schedule that does not run at its start.
fn needs_adoption(schedule: &Schedule, state: &ScheduleState, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let is_needed = match &state.timing {
        Some(timing) => *timing != schedule.timing.to_string(),
        None => !schedule.runs_at_start,
    };
    schedule.timing.latest(now).filter(|_| is_needed)
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Returns the datasets of a schedule, for the log.
fn named(datasets: &ScheduledDatasets) -> String {
    match datasets {
        ScheduledDatasets::All => "*".to_owned(),
        some => some.names().join(", "),
    }
}
