//! What has to be done whosever job it was: take over jobs of vanished workers, give committed files their names, remove what is left
//! in the folder or past its retention, purge the change log, ask for the exports of schedules. Every process that runs exports does all of it; each step is safe to do
//! twice.
//!
//! Each is a [`Task`] of its own in a file of its own, so that a folder that hangs or a file that can't be removed delays nothing else.
//! [`Maintenance::run`] lists them.

mod announce;
mod publish;
mod purge;
mod reap;
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
use crate::maintenance::announce::Announce;
use crate::maintenance::publish::Publish;
use crate::maintenance::purge::Purge;
use crate::maintenance::reap::Reap;
use crate::maintenance::retain::Retain;
use crate::maintenance::schedule::Scheduling;
use crate::maintenance::sweep::Sweep;
use crate::publisher;
use crate::sink::{self, Destination, Limits};
use crate::source::{self, Source, purge::Caps};
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

/// A task that is done again and again.
trait Task: Send {
    /// The name in the log.
    const NAME: &'static str;

    /// Does it once. A round that takes too long is given up, and the next one begins anew.
    fn round(&mut self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Returns when the next round shall begin before its time.
    fn woken(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

impl Maintenance {
    /// Maintenance of `store`'s database and of `destination`.
    pub fn new(settings: Settings, store: Store, source: Source, destination: Destination) -> Maintenance {
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
        let mut announce = Announce::new(self);
        // A folder that hangs doesn't keep the API from starting.
        let error = match tokio::time::timeout(ANNOUNCE_TIMEOUT, announce.round()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => "it takes too long".to_owned(),
        };
        tracing::warn!(event = "announce_failed", error);
    }

    /// Runs all tasks until `shutdown`, but schedules until `drain`: this process would claim no export that they ask for.
    pub async fn run(self, drain: CancellationToken, shutdown: CancellationToken) {
        metrics::change_log_caps(self.settings.log_caps.rows, self.settings.log_caps.age);
        let often = lease::interval(self.settings.lease);
        let mut tasks = JoinSet::new();
        tasks.spawn(every(often, Announce::new(&self), shutdown.clone()));
        tasks.spawn(every(often, Reap::new(&self), shutdown.clone()));
        tasks.spawn(every(often, Publish::new(&self), shutdown.clone()));
        tasks.spawn(every(FOLDER_PERIOD, Sweep::new(&self), shutdown.clone()));
        tasks.spawn(every(FOLDER_PERIOD, Retain::new(&self), shutdown.clone()));
        if let Some(scheduled) = self.scheduled.clone() {
            tasks.spawn(every(SCHEDULE_PERIOD, Scheduling::new(&self, scheduled), drain));
        }
        tasks.spawn(every(PURGE_PERIOD, Purge::new(&self), shutdown));
        while tasks.join_next().await.is_some() {}
    }

    /// The destination for one task, which does one thing after the other there: an operation on a dead network never returns. It keeps
    /// its thread, and the task gets no second one.
    fn destination(&self) -> Destination {
        self.destination.limited(Limits { at_once: 1, timeout: None })
    }

    async fn with_timeout<T>(&self, call: impl Future<Output = Result<T, store::Error>>) -> Result<T, store::Error> {
        store::with_timeout(lease::call_timeout(self.settings.lease), call).await
    }
}

/// Does a task until `shutdown`, whatever becomes of a round, with a rest of `period` in between, which the task may end.
async fn every<T: Task>(period: Duration, mut task: T, shutdown: CancellationToken) {
    let complaints = Complaints::default();
    while !shutdown.is_cancelled() {
        let round = AssertUnwindSafe(task.round()).catch_unwind();
        let done = tokio::select! {
            () = shutdown.cancelled() => return,
            done = tokio::time::timeout(ROUND_TIMEOUT, round) => done,
        };
        let failed = match done {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(chain(&error)),
            Ok(Err(_)) => {
                if let Some(times) = complaints.due("panicked".to_owned()) {
                    tracing::error!(event = "maintenance_panicked", task = T::NAME, times);
                }
                None
            }
            Err(_) => Some("it takes too long".to_owned()),
        };
        if let Some(error) = failed
            && let Some(times) = complaints.due(error.clone())
        {
            tracing::warn!(event = "maintenance_failed", task = T::NAME, error, times);
        }
        tokio::select! { () = shutdown.cancelled() => {}, () = tokio::time::sleep(period) => {}, () = task.woken() => {} }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Fails, panics, and is done, one after the other.
    struct Troubled {
        rounds: Arc<AtomicU32>,
        shutdown: CancellationToken,
    }

    impl Task for Troubled {
        const NAME: &'static str = "troubled";

        async fn round(&mut self) -> Result<(), Error> {
            match self.rounds.fetch_add(1, Ordering::SeqCst) {
                0 => Err(store::Error::XidsSetBack("7".to_owned()).into()),
                1 => panic!("a defect"),
                2 => Ok(()),
                _ => {
                    self.shutdown.cancel();
                    Ok(())
                }
            }
        }
    }

    #[tokio::test]
    async fn no_round_stops_the_next_one() {
        let (rounds, shutdown) = (Arc::new(AtomicU32::new(0)), CancellationToken::new());
        let task = Troubled { rounds: Arc::clone(&rounds), shutdown: shutdown.clone() };
        every(Duration::from_millis(1), task, shutdown).await;
        assert_eq!(rounds.load(Ordering::SeqCst), 4);
    }
}
