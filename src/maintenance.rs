//! The maintenance tasks, which process the jobs of all workers.
//!
//! The tasks take over the jobs of vanished workers, publish committed files, remove abandoned hidden files, apply the
//! retention, purge the change log and submit the exports of schedules. Every process that runs exports runs all tasks.
//! Each step is idempotent, so several processes can run it at the same time.
//!
//! [`Maintenance::run`] starts each task separately, so that a hanging folder delays only the task that uses it.

mod clock_trust;
mod publish;
mod retain;
mod schedule;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::catalog::current::CurrentCatalog;
use crate::job::times::Times;
use crate::job::{Retention, Terms};
use crate::maintenance::clock_trust::{ClockReading, ClockTrust};
use crate::maintenance::publish::Publish;
use crate::maintenance::schedule::Scheduling;
use crate::publisher;
use crate::store::Store;
use crate::store::transitions::Transition;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics;
use cdc_capture::capture::Removals;
use cdc_capture::{self, Caps, Source};
use cdc_destination::{self, Destination, Limited};
use pg_session::failure::chain;

/// The pause between two readings of the whole folder, which is expensive. A file left behind by a crash does no harm.
const FOLDER_PERIOD: Duration = Duration::from_secs(60);

/// The pause between two purges. A purge removes rows faster than the change log grows.
const PURGE_PERIOD: Duration = Duration::from_secs(10);

/// The pause between two checks of the schedules. It is the shortest interval of a schedule's slots.
const SCHEDULE_PERIOD: Duration = Duration::from_secs(1);

/// The time after which a round counts as failed. A purging statement may take a minute.
const ROUND_TIMEOUT: Duration = Duration::from_secs(120);

/// The time that a look for work waits for the id of the destination.
const ID_TIMEOUT: Duration = Duration::from_millis(500);

/// The time that the start of the process waits for [`Maintenance::announce`].
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that the end of the process waits for the record of its destination.
const LAST_RECORD_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause between two checks if the destination is to be recorded.
const ANNOUNCE_PERIOD: Duration = Duration::from_secs(10);

/// The age at which the record of a destination is renewed.
const RECORD_AGE: Duration = Duration::from_hours(1);

#[derive(Clone, Debug)]
pub struct Settings {
    pub times: Times,
    /// The part of the change log that positions may hold.
    pub log_caps: Caps,
    pub retain_files: Retention,
    /// The retention of jobs. A job's files and manifest are removed with the job at the latest.
    pub retain_jobs: Retention,
    /// The time for which the retentions of files and jobs keep an export that its consumer has not acknowledged.
    pub retain_unacked: Duration,
    pub publisher: publisher::Settings,
}

#[derive(Clone, Debug)]
pub struct Maintenance {
    settings: Settings,
    store: Store,
    source: Source,
    destination: Limited,
    /// The datasets of the jobs that this process can run, and the schedules.
    catalog: CurrentCatalog,
    /// The limits for a new job of a schedule.
    terms: Terms,
    /// Nothing is removed by its age unless the database's clock is believed.
    clocks: Arc<ClockTrust>,
    /// Wakes the sweep, because a vanished worker or publisher may have left a hidden file behind.
    sweep_requested: Arc<Notify>,
    publish_requested: Arc<Notify>,
}

/// The reason why a round ended early. It is only logged.
type Error = Box<dyn std::error::Error + Send + Sync>;

impl Maintenance {
    pub fn new(
        settings: Settings,
        store: Store,
        source: Source,
        destination: Limited,
        catalog: CurrentCatalog,
        terms: Terms,
    ) -> Maintenance {
        let store = store.within(settings.times.call);
        let (clocks, sweep_requested, publish_requested) = Default::default();
        Maintenance { settings, store, source, destination, catalog, terms, clocks, sweep_requested, publish_requested }
    }

    /// Records that this destination has a worker. Must run before the first job is submitted. Otherwise a process with
    /// another destination could claim the job.
    pub async fn announce(&self) {
        let task = self.for_task();
        // Commits while no process was there are dated by when the last one was. So the look comes first.
        let begin = async {
            look(&task, &mut None).await?;
            announce(&task, Duration::ZERO).await
        };
        // A hanging folder must not prevent the start of the API.
        let error = match tokio::time::timeout(ANNOUNCE_TIMEOUT, begin).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&*error),
            Err(_) => format!("no result after {} seconds", ANNOUNCE_TIMEOUT.as_secs()),
        };
        tracing::warn!(event = "announce_failed", error);
    }

    /// Runs all tasks until `shutdown`. The task of the schedules ends at `drain`, because this process claims no
    /// exports after that.
    pub async fn run(self, drain: CancellationToken, shutdown: CancellationToken) {
        metrics::change_log_caps(self.settings.log_caps.bytes, self.settings.log_caps.age);
        let (last, often) = (self.for_task(), Pace::every(self.look_period()));
        let on_request = |requested| Pace { woken: Some(Arc::clone(requested)), ..Pace::of_files() };
        let mut tasks = JoinSet::new();
        let task = self.for_task();
        let mut looked_at = None;
        tasks.spawn(every("reap", often, async move || look(&task, &mut looked_at).await, shutdown.clone()));
        let (task, pace) = (self.for_task(), Pace { period: ANNOUNCE_PERIOD, ..Pace::of_files() });
        tasks.spawn(every("announce", pace, async move || announce(&task, RECORD_AGE).await, shutdown.clone()));
        let (mut publish, pace) = (Publish::new(&self), on_request(&self.publish_requested));
        tasks.spawn(every("publish", pace, async move || publish.round().await, shutdown.clone()));
        let task = self.for_task();
        let sweeping = on_request(&self.sweep_requested);
        tasks.spawn(every("sweep", sweeping, async move || sweep::round(&task).await, shutdown.clone()));
        let task = self.for_task();
        let is_left = Arc::new(Notify::new());
        let retaining = on_request(&is_left);
        let retain = async move || {
            if !retain::round(&task).await? {
                is_left.notify_one();
            }
            Ok(())
        };
        tasks.spawn(every("retain", retaining, retain, shutdown.clone()));
        let task = self.for_task();
        let looking = Pace::every(FOLDER_PERIOD);
        tasks.spawn(every("unknown", looking, async move || fail_unknown(&task).await, shutdown.clone()));
        let scheduling = Scheduling::new(self.for_task());
        tasks.spawn(every("schedule", Pace::every(SCHEDULE_PERIOD), async move || scheduling.round().await, drain));
        let task = self.for_task();
        let mut removals = Removals::default();
        let tend = async move || Ok(task.source.tend_functions(&mut removals).await?);
        tasks.spawn(every("functions", Pace::every(PURGE_PERIOD), tend, shutdown.clone()));
        tasks.spawn(every("purge", Pace::every(PURGE_PERIOD), async move || purge(&self).await, shutdown));
        while tasks.join_next().await.is_some() {}
        // The age of a change that is committed while no process runs counts from here.
        drop(tokio::time::timeout(LAST_RECORD_TIMEOUT, announce(&last, Duration::ZERO)).await);
    }

    /// Returns a copy for one task, limited to one concurrent operation at the destination.
    ///
    /// An operation on a dead network never returns and occupies its thread for ever. The limit prevents that the task
    /// occupies a second thread.
    fn for_task(&self) -> Maintenance {
        self.with_concurrent(1)
    }

    fn look_period(&self) -> Duration {
        failpoint::time("maintenance.look", self.settings.times.beat)
    }

    /// Returns a copy that runs so many operations at the destination at once. On a dead network it occupies as many
    /// threads.
    fn with_concurrent(&self, max_concurrent: usize) -> Maintenance {
        let destination = self.destination.limited(max_concurrent, None);
        Maintenance { destination, ..self.clone() }
    }
}

/// Looks for work, takes over the jobs of vanished workers, and wakes those who do the rest. `looked_at`: the time of
/// the last look, at which all that the change log has was in a moment.
async fn look(maintenance: &Maintenance, looked_at: &mut Option<DateTime<Utc>>) -> Result<(), Error> {
    let Maintenance { settings, store, destination, catalog, clocks, .. } = maintenance;
    // A destination that hangs must not keep the jobs of a vanished worker from being taken over.
    let destination = tokio::time::timeout(ID_TIMEOUT, destination.id()).await;
    let destination = destination.ok().and_then(Result::ok);
    let sent = Instant::now();
    let due = store.due(catalog.get().dataset_names(), destination, settings.times.lease).await?;
    clocks.compare(ClockReading { database: due.looked_at, sent, received: Instant::now() });
    if due.has_jobs {
        store.work().notify_last();
    }
    if due.has_unpublished {
        maintenance.publish_requested.notify_one();
    }
    if due.log_has_moved {
        store.record_moment(due.log_sequence, *looked_at).await?;
    }
    *looked_at = Some(due.looked_at);
    if due.has_lapsed { reap(maintenance).await } else { Ok(()) }
}

/// Records that a process with this destination is running, as [`Store::record_destination`] does.
async fn announce(Maintenance { store, destination, .. }: &Maintenance, age: Duration) -> Result<(), Error> {
    let id = destination.id().await?;
    Ok(store.record_destination(id, age).await?)
}

async fn reap(Maintenance { settings, store, source, sweep_requested, .. }: &Maintenance) -> Result<(), Error> {
    store.repair_future_timestamps(settings.times.lease).await?;
    store.shorten_orphaned().await?;
    let mut sessions = BTreeSet::new();
    let mut jobs = BTreeMap::new();
    for Transition { export, session, .. } in store.reap().await? {
        jobs.insert(export.job.as_uuid(), export.status);
        sessions.extend(session);
    }
    for (job, status) in jobs {
        tracing::warn!(event = "export_taken_over", jobId = %job, status = %status);
        metrics::lease_taken_over();
        sweep_requested.notify_one();
    }
    for session in sessions {
        source.end_sessions(&session).await?;
    }
    Ok(())
}

/// Fails the jobs that wait for a dataset which is gone.
async fn fail_unknown(Maintenance { store, catalog, .. }: &Maintenance) -> Result<(), Error> {
    Ok(store.fail_unknown(catalog.get().dataset_names()).await?)
}

async fn purge(Maintenance { settings, source, clocks, .. }: &Maintenance) -> Result<(), Error> {
    while source.purge(&Caps { now: clocks.now(), ..settings.log_caps }).await? >= Caps::PURGE_ROWS {}
    Ok(())
}

/// The pause between two rounds of a task, and the end of a round that takes too long.
#[derive(Clone)]
struct Pace {
    period: Duration,
    /// Ends the pause early.
    woken: Option<Arc<Notify>>,
    /// The time after which a round counts as failed.
    timeout: Duration,
    /// True if a round ends then.
    is_cut: bool,
}

impl Pace {
    fn every(period: Duration) -> Pace {
        Pace { period, woken: None, timeout: ROUND_TIMEOUT, is_cut: true }
    }

    /// Returns the pace of a task that works on many files at the destination. Its rounds are not cut: the next one
    /// would begin again with the same files, and never reach the others.
    fn of_files() -> Pace {
        Pace { is_cut: false, ..Pace::every(failpoint::time("maintenance.folder", FOLDER_PERIOD)) }
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

/// Runs rounds of a task until `shutdown`. Continues after an error, a panic or a timeout of a round. A round that
/// takes too long counts as failed even if it is not cut. `task` is the name of the task in the log.
async fn every(
    task: &'static str,
    pace: Pace,
    mut round: impl AsyncFnMut() -> Result<(), Error>,
    shutdown: CancellationToken,
) {
    let throttle = LogThrottle::default();
    metrics::init_maintenance(task);
    while !shutdown.is_cancelled() {
        let mut round = pin!(AssertUnwindSafe(round()).catch_unwind());
        loop {
            let done = tokio::select! {
                () = shutdown.cancelled() => return,
                done = tokio::time::timeout(pace.timeout, &mut round) => done,
            };
            let goes_on = done.is_err() && !pace.is_cut;
            if !matches!(done, Ok(Ok(Ok(())))) {
                metrics::maintenance_failed(task);
            }
            match done {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => warn_throttled(&throttle, task, chain(&*error)),
                Ok(Err(_)) => {
                    if let Some(times) = throttle.should_log("panicked".to_owned()) {
                        tracing::error!(event = "maintenance_panicked", task, times);
                    }
                }
                Err(_) => {
                    let seconds = pace.timeout.as_secs();
                    warn_throttled(&throttle, task, format!("the round did not end within {seconds} seconds"));
                }
            }
            if !goes_on {
                break;
            }
        }
        tokio::select! { () = shutdown.cancelled() => {}, () = pace.rest() => {} }
    }
}

fn warn_throttled(throttle: &LogThrottle, task: &str, error: String) {
    if let Some(times) = throttle.should_log(error.clone()) {
        tracing::warn!(event = "maintenance_failed", task, error, times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rounds_continue_after_an_error_or_a_panic() {
        let (mut rounds, shutdown) = (0, CancellationToken::new());
        let ends = shutdown.clone();
        let round = async || {
            rounds += 1;
            match rounds {
                1 => return Err(crate::store::Error::StandbyMissing.into()),
                2 => panic!("a defect"),
                3 => {}
                _ => ends.cancel(),
            }
            Ok(())
        };
        every("failing", Pace::every(Duration::from_millis(1)), round, shutdown).await;
        assert_eq!(rounds, 4);
    }

    #[tokio::test]
    async fn a_long_round_ends_early_unless_it_works_on_files() {
        for (pace, expected) in [(Pace::every(FOLDER_PERIOD), [1, 0]), (Pace::of_files(), [1, 1])] {
            let timeout = Duration::from_millis(10);
            let pace = Pace { period: timeout, timeout, ..pace };
            let (mut begun, mut ended, shutdown) = (0, 0, CancellationToken::new());
            let ends = shutdown.clone();
            let round = async || {
                begun += 1;
                if begun == 1 {
                    tokio::time::sleep(3 * timeout).await;
                    ended += 1;
                } else {
                    ends.cancel();
                }
                Ok(())
            };
            every("long", pace, round, shutdown).await;
            assert_eq!([begun - 1, ended], expected);
        }
    }
}
