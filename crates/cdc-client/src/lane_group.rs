//! The lanes of a consumer that are read side by side, and the jobs at whose exports they wait for each other.
//!
//! A lane that reaches its export of a job of several datasets waits until each other lane of the job has reached its
//! own, or has a later one. Then the target applies all of these exports in one transaction. If a lane's round ends
//! before its export, the job is not applied in this round. No job waits for a lane whose table belongs to another
//! lane. While it waits, a lane gives its turn to another one.
//!
//! Jobs are applied in the order of their requests: each time, the oldest one is, as soon as each lane waits or has
//! ended. None is applied that was requested after the round began: other lanes may have been listed before it. None is
//! applied behind one that is left out, until the export with which the lane goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, oneshot};
use uuid::Uuid;

use crate::Error;
use crate::api::Api;
use crate::apply::{Applied, TransactionFailure};
use crate::manifest_index::ManifestIndex;
use crate::observer::Observer;
use crate::ready_export::{ReadyExport, apply_together};
use crate::spool::Spool;
use cdc_manifest::{ManifestJob, RequestTime, request_time};

/// The lanes that are read side by side in one round.
pub struct LaneGroup {
    datasets: BTreeSet<String>,
    turns: Arc<Semaphore>,
    state: Mutex<Lanes>,
    /// The newest job when the round began. `None` if the exports are read from a place.
    newest: Option<Uuid>,
    /// The manifests of the place from which the lanes are read, if it is one.
    manifests: OnceCell<Arc<ManifestIndex>>,
    /// True if the user was warned that an export of the round is of a job of one dataset.
    has_warned: AtomicBool,
}

/// The right to work on a lane. Only some lanes have it at the same time.
pub type Turn = OwnedSemaphorePermit;

#[derive(Default)]
struct Lanes {
    /// The datasets whose round has not ended, each with the number of the last export that its table has or goes past.
    running: BTreeMap<String, u64>,
    /// The same of lanes whose round has ended.
    ended: BTreeMap<String, u64>,
    /// The same of lanes whose round has ended with an error.
    failed: BTreeMap<String, u64>,
    /// The exports that wait, by job and dataset.
    waiting: BTreeMap<Uuid, BTreeMap<String, WaitingExport>>,
    jobs: BTreeMap<Uuid, Arc<SharedJob>>,
    /// The oldest job that is not applied in this round.
    stopped: Option<Uuid>,
    /// The exports that lanes leave out: the time of the first one, and of the export with which the lane goes on.
    gaps: Vec<(RequestTime, Option<RequestTime>)>,
}

/// A job of several datasets whose exports some lanes have reached.
#[derive(Default)]
pub(super) struct SharedJob {
    /// The number of each export that is applied, by dataset.
    numbers: OnceCell<BTreeMap<String, u64>>,
    /// The number of its exports that `pull` copies.
    copied: OnceCell<u64>,
    pub(super) spool: Spool,
}

struct WaitingExport {
    export: ReadyExport,
    outcome: oneshot::Sender<Result<Applied, Error>>,
}

impl LaneGroup {
    /// Returns the group of the lanes of these datasets. `turns` of them are worked on at the same time. `newest` is
    /// the newest job before any lane was listed.
    pub fn new(datasets: BTreeSet<String>, turns: u8, newest: Option<Uuid>) -> LaneGroup {
        let running = datasets.iter().map(|dataset| (dataset.clone(), 0)).collect();
        LaneGroup {
            datasets,
            turns: Arc::new(Semaphore::new(turns.into())),
            state: Mutex::new(Lanes { running, ..Lanes::default() }),
            newest,
            manifests: OnceCell::new(),
            has_warned: AtomicBool::new(false),
        }
    }

    pub(super) fn datasets(&self) -> &BTreeSet<String> {
        &self.datasets
    }

    /// Returns the manifests of the place from which the lanes are read. Only the first lane of a round reads them.
    pub(super) async fn manifests(
        &self,
        read: impl Future<Output = Result<ManifestIndex, Error>>,
    ) -> Result<Arc<ManifestIndex>, Error> {
        let read = async { read.await.map(Arc::new) };
        self.manifests.get_or_try_init(|| read).await.cloned()
    }

    fn state(&self) -> MutexGuard<'_, Lanes> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn turn(&self) -> Turn {
        Arc::clone(&self.turns).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Records the number of the last export that the lane's table has.
    pub(super) async fn has_moved(&self, dataset: &str, number: u64) {
        self.change(|lanes| {
            lanes.running.insert(dataset.to_owned(), number);
        })
        .await;
    }

    /// Changes the state of the lanes, and applies the job for which no lane has to be waited for any more.
    async fn change(&self, change: impl FnOnce(&mut Lanes)) {
        let whole = {
            let mut state = self.state();
            change(&mut state);
            state.take_oldest()
        };
        if let Some(exports) = whole {
            apply_job(exports).await;
        }
    }

    /// Records that the lane's round has ended. No job is applied whose export the lane has not reached.
    pub async fn has_ended(&self, dataset: &str, has_failed: bool) {
        self.change(|lanes| {
            let ended = if has_failed { &mut lanes.failed } else { &mut lanes.ended };
            ended.extend(lanes.running.remove_entry(dataset));
        })
        .await;
    }

    pub(super) async fn leave(&self, dataset: &str) {
        self.change(|lanes| _ = lanes.running.remove(dataset)).await;
    }

    /// Returns a job whose exports several lanes have. Returns `None` if the job is of one dataset, or there is only
    /// one lane.
    fn shared_job(&self, job: &ManifestJob) -> Result<Option<(Uuid, Arc<SharedJob>)>, Error> {
        if self.datasets.len() == 1 || job.datasets().is_none() {
            return Ok(None);
        }
        let id: Uuid = job.id().parse().map_err(|_| Error::refused("a job has no id"))?;
        Ok(Some((id, Arc::clone(self.state().jobs.entry(id).or_default()))))
    }

    /// Returns the job of a lane's export. Returns `None` if the export is to be applied by itself. `numbers` reads the
    /// number of each export of the job that is applied, by dataset.
    pub(super) async fn job<F>(
        &self,
        job: &ManifestJob,
        observer: &dyn Observer,
        numbers: impl FnOnce(Uuid) -> F,
    ) -> Result<Option<(Uuid, Arc<SharedJob>)>, Error>
    where
        F: Future<Output = Result<BTreeMap<String, u64>, Error>>,
    {
        let Some((id, job)) = self.shared_job(job)? else {
            if self.datasets.len() > 1 && !self.has_warned.swap(true, Ordering::Relaxed) {
                observer.notice(
                    "warning: exports of this round are of jobs of one dataset: joins between tables hold again after \
                     the next job of all datasets",
                );
            }
            return Ok(None);
        };
        if self.newest.is_some_and(|newest| id > newest) {
            return Err(Error::NextRound);
        }
        job.numbers.get_or_try_init(|| numbers(id)).await?;
        Ok(Some((id, job)))
    }

    /// Records that a lane leaves out its exports from a time on, and with which export it goes on, if it does.
    pub(super) async fn leave_out(&self, from: RequestTime, until: Option<RequestTime>) {
        self.change(|lanes| lanes.gaps.push((from, until))).await;
    }

    /// Returns the number of a job's exports that the lanes copy. Returns `None` if the job's manifests say the same.
    /// Returns `None` also if there is only one lane: its readers don't count.
    pub(super) async fn copied_exports(&self, job: &ManifestJob, api: &Api) -> Result<Option<u64>, Error> {
        let datasets = job.datasets();
        let Some((id, job)) = self.shared_job(job)? else { return Ok(None) };
        let count = async { Ok::<_, Error>(api.job_of_datasets(id.into()).await?.files_of(&self.datasets)) };
        let copied = *job.copied.get_or_try_init(|| count).await?;
        Ok(Some(copied).filter(|copied| Some(copied.to_string().as_str()) != datasets))
    }

    /// Applies an export of a job, together with those of the other lanes.
    pub(super) async fn apply(
        &self,
        id: Uuid,
        dataset: &str,
        export: ReadyExport,
        turn: &mut Option<Turn>,
    ) -> Result<Applied, Error> {
        let (outcome, mut applied) = oneshot::channel();
        let passed = export.manifest.number.saturating_sub(1);
        let waiting = WaitingExport { export, outcome };
        self.change(|lanes| {
            lanes.running.insert(dataset.to_owned(), passed);
            lanes.waiting.entry(id).or_default().insert(dataset.to_owned(), waiting);
        })
        .await;
        if let Ok(applied) = applied.try_recv() {
            return applied;
        }
        *turn = None;
        let applied = applied.await.map_err(|_| Error::refused("job_incomplete: its job waits for a later one"))?;
        *turn = Some(self.turn().await);
        applied
    }
}

impl Lanes {
    /// Removes and returns the exports of the oldest job once each running lane waits. Ends the waiting for a job whose
    /// lane has ended before it, and for later ones.
    fn take_oldest(&mut self) -> Option<Vec<WaitingExport>> {
        let any_before = |lanes: &BTreeMap<String, u64>, id: &Uuid, arrived: &BTreeMap<String, WaitingExport>| {
            let is_before = |(dataset, number): &(&String, &u64)| {
                !arrived.contains_key(*dataset) && lanes.get(*dataset).is_some_and(|had| had < *number)
            };
            let (dataset, number) = self.jobs.get(id)?.numbers.get()?.iter().find(is_before)?;
            Some(format!("job_incomplete: the export {number} of {dataset} in the same job was not there in time"))
        };
        self.waiting.retain(|id, arrived| {
            let late = any_before(&self.ended, id, arrived);
            let has_failed = any_before(&self.failed, id, arrived).is_some();
            let is_stopped = late.is_some() || has_failed || self.stopped.is_some_and(|stopped| stopped < *id);
            if is_stopped {
                self.stopped.get_or_insert(*id);
                for waiting in std::mem::take(arrived).into_values() {
                    let why = late.clone().map_or(Error::JobStopped, Error::Refused);
                    drop(waiting.outcome.send(Err(why)));
                }
            }
            !is_stopped
        });
        if self.waiting.values().map(BTreeMap::len).sum::<usize>() < self.running.len() {
            return None;
        }
        let (id, exports) = self.waiting.pop_first()?;
        let time = request_time(id);
        let is_behind = |(from, until): &&(_, Option<_>)| *from <= time && until.is_none_or(|until| time < until);
        if let Some((_, until)) = self.gaps.iter().find(is_behind) {
            for waiting in exports.into_values() {
                let why = "job_incomplete: another dataset leaves out this job or an earlier one".to_owned();
                let outcome = if until.is_some() { Ok(Applied::NeedsFullExport(why)) } else { Err(Error::JobStopped) };
                drop(waiting.outcome.send(outcome));
            }
            return None;
        }
        // No service gives jobs an order in which lanes wait for each other. If one does, the lanes of a job fail.
        if any_before(&self.running, &id, &exports).is_some() {
            return None;
        }
        self.jobs.remove(&id);
        Some(exports.into_values().collect())
    }
}

/// Applies exports in one transaction. If some can't be applied, applies the others without them.
async fn apply_job(mut exports: Vec<WaitingExport>) {
    while !exports.is_empty() {
        let ready: Vec<_> = exports.iter().map(|waiting| &waiting.export).collect();
        let (applied, are_several) = (apply_together(&ready).await, ready.len() > 1);
        let waiting = std::mem::take(&mut exports).into_iter();
        match applied {
            Ok(outcomes) => {
                for (waiting, outcome) in waiting.zip(outcomes) {
                    match outcome {
                        Some(outcome) => drop(waiting.outcome.send(Ok(outcome))),
                        None => exports.push(waiting),
                    }
                }
            }
            Err(TransactionFailure { member, error }) => {
                let is_of_another_lane = error.is_of_another_lane();
                let mut error = Some(match Error::from(error) {
                    cause if member.is_none() && are_several => {
                        Error::About { subject: "its job".to_owned(), cause: Box::new(cause) }
                    }
                    own => own,
                });
                for (at, waiting) in waiting.enumerate() {
                    match error.take_if(|_| at == member.unwrap_or(0)) {
                        Some(own) => drop(waiting.outcome.send(Err(own))),
                        None if is_of_another_lane => exports.push(waiting),
                        None => drop(waiting.outcome.send(Err(Error::JobStopped))),
                    }
                }
            }
        }
    }
}
