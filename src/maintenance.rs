//! What has to be done whosever job it was: take over jobs of vanished workers, give committed files their names, remove what is left
//! in the folder or past its retention, purge the change log, ask for the exports of schedules. Every process that runs exports does all
//! of it; each step is safe to do twice.
//!
//! Each is a task of its own, so that a folder that hangs or a file that can't be removed delays nothing else. [`Maintenance::run`] lists
//! them.

mod publish;
mod retain;
mod schedule;
mod sweep;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::job::Retention;
use crate::maintenance::publish::Publish;
use crate::maintenance::schedule::Scheduling;
use crate::publisher;
use crate::sink::{self, Destination, Limits};
use crate::source::purge::{Caps, PURGE_ROWS};
use crate::source::{self, Source};
use crate::store::transitions::Transition;
use crate::store::{self, Store, lease};
use crate::telemetry::complaints::Complaints;
use crate::telemetry::{chain, metrics};

pub use schedule::Scheduled;

/// Reading the whole folder costs more than all the rest, and a file that a crash left there harms nothing.
const FOLDER_PERIOD: Duration = Duration::from_secs(60);

/// The log grows slowly beside what a purge takes away, and a statement in ten seconds is nothing.
const PURGE_PERIOD: Duration = Duration::from_secs(10);

/// The shortest distance of a schedule's slots.
const SCHEDULE_PERIOD: Duration = Duration::from_secs(1);

/// How long a round of a task may take before it begins anew. A purging statement may take a minute.
const ROUND_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the start waits for the folder and the database to be told that this process lives.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(5);

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a job stays with a worker that doesn't renew its lease.
    pub lease: Duration,
    /// How much of the change log a consumer may hold that asks for no export.
    pub log_caps: Caps,
    /// Which files are kept.
    pub retain_files: Retention,
    /// Which jobs are kept; a job's file is removed with the job at the latest.
    pub retain_jobs: Retention,
    /// For how long both spare an export that its consumer, which acknowledges, has not acknowledged.
    pub retain_unacked: Duration,
    /// How files are handed out.
    pub publisher: publisher::Settings,
}

/// What the tasks work with.
#[derive(Clone, Debug)]
pub struct Maintenance {
    settings: Settings,
    store: Store,
    source: Source,
    destination: Destination,
    scheduled: Option<Scheduled>,
    /// Wakes the sweep: a vanished attempt or publisher may have left a file.
    swept: Arc<Notify>,
}

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error(transparent)]
    Sink(#[from] sink::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Publisher(#[from] publisher::Error),
}

impl Maintenance {
    /// Maintenance of `store`'s database and of `destination`.
    pub fn new(settings: Settings, store: Store, source: Source, destination: Destination) -> Maintenance {
        let store = store.within(lease::call_timeout(settings.lease));
        Maintenance { settings, store, source, destination, scheduled: None, swept: Arc::new(Notify::new()) }
    }

    /// Which asks for the exports of schedules too, if there are any.
    pub fn with_schedules(self, scheduled: Scheduled) -> Maintenance {
        let scheduled = Some(scheduled).filter(|scheduled| !scheduled.catalog.schedules().is_empty());
        Maintenance { scheduled, ..self }
    }

    /// Records that this destination has a worker, before the first job is submitted: a process with another destination would otherwise
    /// take the job.
    pub async fn announce(&self) {
        let task = self.for_task();
        // A folder that hangs doesn't keep the API from starting.
        let error = match tokio::time::timeout(ANNOUNCE_TIMEOUT, announce(&task)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => "it takes too long".to_owned(),
        };
        tracing::warn!(event = "announce_failed", error);
    }

    /// Runs all tasks until `shutdown`, but schedules until `drain`: this process would claim no export that they ask for.
    pub async fn run(self, drain: CancellationToken, shutdown: CancellationToken) {
        metrics::change_log_caps(self.settings.log_caps.rows, self.settings.log_caps.age);
        let often = Pace::of(lease::interval(self.settings.lease));
        let mut tasks = JoinSet::new();
        let task = self.for_task();
        tasks.spawn(every("announce", often.clone(), async move || announce(&task).await, shutdown.clone()));
        let task = self.for_task();
        tasks.spawn(every("reap", often.clone(), async move || reap(&task).await, shutdown.clone()));
        let mut publish = Publish::new(self.for_task());
        tasks.spawn(every("publish", often, async move || publish.round().await, shutdown.clone()));
        let task = self.for_task();
        let sweeping = Pace { period: FOLDER_PERIOD, woken: Some(Arc::clone(&self.swept)) };
        tasks.spawn(every("sweep", sweeping, async move || sweep::round(&task).await, shutdown.clone()));
        let task = self.for_task();
        let retaining = Pace::of(FOLDER_PERIOD);
        tasks.spawn(every("retain", retaining, async move || retain::round(&task).await, shutdown.clone()));
        if let Some(scheduled) = self.scheduled.clone() {
            let mut scheduling = Scheduling::new(self.for_task(), scheduled);
            tasks.spawn(every("schedule", Pace::of(SCHEDULE_PERIOD), async move || scheduling.round().await, drain));
        }
        let task = self.for_task();
        let removing = Pace::of(PURGE_PERIOD);
        tasks.spawn(every("functions", removing, async move || remove_unused(&task).await, shutdown.clone()));
        tasks.spawn(every("purge", Pace::of(PURGE_PERIOD), async move || purge(&self).await, shutdown));
        while tasks.join_next().await.is_some() {}
    }

    /// The same for one task, which does one thing after the other at the destination: an operation on a dead network never returns. It
    /// keeps its thread, and the task gets no second one.
    fn for_task(&self) -> Maintenance {
        let destination = self.destination.limited(Limits { at_once: 1, timeout: None });
        Maintenance { destination, ..self.clone() }
    }
}

/// Records that a process with this destination lives.
async fn announce(Maintenance { store, destination, .. }: &Maintenance) -> Result<(), Error> {
    let id = destination.id().await?;
    // Tells the cause where the write below would only time out.
    store.ping().await?;
    Ok(store.record_destination(id).await?)
}

/// Takes the jobs of vanished workers from them.
async fn reap(Maintenance { settings, store, swept, .. }: &Maintenance) -> Result<(), Error> {
    store.repair_future_timestamps(settings.lease).await?;
    store.make_good_a_clock_set_back_for_deliveries().await?;
    for Transition { job, .. } in store.reap().await? {
        tracing::warn!(event = "export_taken_over", jobId = %job.id, status = %job.status);
        metrics::lease_taken_over();
        swept.notify_one();
    }
    Ok(())
}

/// Purges the change log.
async fn purge(Maintenance { settings, source, .. }: &Maintenance) -> Result<(), Error> {
    while source.purge(&settings.log_caps).await? >= PURGE_ROWS {}
    Ok(())
}

/// Removes the trigger functions that no trigger calls any more, for example those of dropped tables.
async fn remove_unused(Maintenance { source, .. }: &Maintenance) -> Result<(), Error> {
    Ok(source.remove_unused_functions().await?)
}

/// The time at which the next round of a task begins: after a rest, or earlier if it is woken.
#[derive(Clone)]
struct Pace {
    /// The rest between two rounds.
    period: Duration,
    /// Ends a rest before its time.
    woken: Option<Arc<Notify>>,
}

impl Pace {
    fn of(period: Duration) -> Pace {
        Pace { period, woken: None }
    }

    async fn rest(&self) {
        let woken = async {
            match &self.woken {
                Some(notify) => notify.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! { () = tokio::time::sleep(self.period) => {}, () = woken => {} }
    }
}

/// Does rounds of a task until `shutdown`, whatever becomes of a round. A round that takes too long is given up, and the next one begins
/// anew. `task` is the name in the log.
async fn every(
    task: &'static str,
    pace: Pace,
    mut round: impl AsyncFnMut() -> Result<(), Error>,
    shutdown: CancellationToken,
) {
    let complaints = Complaints::default();
    metrics::init_maintenance(task);
    while !shutdown.is_cancelled() {
        let round = AssertUnwindSafe(round()).catch_unwind();
        let done = tokio::select! {
            () = shutdown.cancelled() => return,
            done = tokio::time::timeout(ROUND_TIMEOUT, round) => done,
        };
        if !matches!(done, Ok(Ok(Ok(())))) {
            metrics::maintenance_failed(task);
        }
        let failed = match done {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(chain(&error)),
            Ok(Err(_)) => {
                if let Some(times) = complaints.due("panicked".to_owned()) {
                    tracing::error!(event = "maintenance_panicked", task, times);
                }
                None
            }
            Err(_) => Some("it takes too long".to_owned()),
        };
        if let Some(error) = failed
            && let Some(times) = complaints.due(error.clone())
        {
            tracing::warn!(event = "maintenance_failed", task, error, times);
        }
        tokio::select! { () = shutdown.cancelled() => {}, () = pace.rest() => {} }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_round_stops_the_next_one() {
        let (mut rounds, shutdown) = (0, CancellationToken::new());
        let ends = shutdown.clone();
        let round = async || {
            rounds += 1;
            match rounds {
                1 => return Err(store::Error::XidsSetBack("7".to_owned()).into()),
                2 => panic!("a defect"),
                3 => {}
                _ => ends.cancel(),
            }
            Ok(())
        };
        every("troubled", Pace::of(Duration::from_millis(1)), round, shutdown).await;
        assert_eq!(rounds, 4);
    }
}
