//! The lanes of a consumer that are read side by side, and the batches at which they wait for each other.
//!
//! A lane that comes to the export of a batch waits until each other lane of the batch has come to its own export, or
//! has a later one. Then the target applies all of these exports in one transaction. A lane whose round had ended
//! before its export was published is read again. If a lane's round ends with an error before its export, or without it
//! twice, the batch is not applied. No batch waits for a lane whose table belongs to another lane. While it waits, a
//! lane gives its turn to another one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore, oneshot};
use uuid::Uuid;

use crate::apply::{Applied, TransactionFailure};
use crate::client::Error;
use crate::client::observer::Observer;
use crate::client::ready_export::{ReadyExport, apply_together};
use crate::client::spool::Spool;
use crate::manifest::ManifestBatch;

/// The lanes that are read side by side in one round.
pub(crate) struct LaneGroup {
    turns: Arc<Semaphore>,
    state: Mutex<Lanes>,
    /// Wakes the lanes that have ended.
    changed: Notify,
    are_several: bool,
    /// True if the user knows that an export of the round is of no batch.
    has_told: AtomicBool,
}

/// The right to work on a lane. Only some lanes have it at the same time.
pub(crate) type Turn = OwnedSemaphorePermit;

#[derive(Default)]
struct Lanes {
    by_dataset: BTreeMap<String, Lane>,
    /// The exports that wait, by batch and dataset.
    waiting: BTreeMap<Uuid, BTreeMap<String, WaitingExport>>,
    batches: BTreeMap<Uuid, Arc<LaneBatch>>,
    /// The lanes that are read again, each with the batch that needs it.
    read_again: BTreeSet<(Uuid, String)>,
}

struct Lane {
    /// The number of the last export that the table has.
    number: u64,
    state: LaneState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LaneState {
    Running,
    Ended,
    Failed,
}

/// A batch to whose exports some lanes have come.
#[derive(Default)]
pub(super) struct LaneBatch {
    /// The number of each export with a file, by dataset.
    numbers: OnceCell<BTreeMap<String, u64>>,
    pub(super) spool: Spool,
}

/// An export that waits for others.
struct WaitingExport {
    export: ReadyExport,
    outcome: oneshot::Sender<Result<Applied, Error>>,
}

impl LaneGroup {
    /// Returns the group of the lanes of these datasets. `turns` of them are worked on at the same time.
    pub(crate) fn new<'d>(datasets: impl IntoIterator<Item = &'d String>, turns: u8) -> LaneGroup {
        let lane = |dataset: &String| (dataset.clone(), Lane { number: 0, state: LaneState::Running });
        let by_dataset: BTreeMap<_, _> = datasets.into_iter().map(lane).collect();
        LaneGroup {
            turns: Arc::new(Semaphore::new(turns.into())),
            are_several: by_dataset.len() > 1,
            state: Mutex::new(Lanes { by_dataset, ..Lanes::default() }),
            changed: Notify::new(),
            has_told: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, Lanes> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of a lane.
    pub(crate) async fn turn(&self) -> Turn {
        Arc::clone(&self.turns).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Records the number of the last export that the lane's table has.
    pub(super) async fn has_moved(&self, dataset: &str, number: u64) {
        self.change_lane(dataset, |lane| lane.number = number).await;
    }

    /// Removes a lane whose table belongs to another lane, so that no batch waits for it.
    pub(super) async fn leave(&self, dataset: &str) {
        self.change(|lanes| drop(lanes.by_dataset.remove(dataset))).await;
    }

    async fn change_lane(&self, dataset: &str, change: impl FnOnce(&mut Lane)) {
        self.change(|lanes| {
            if let Some(lane) = lanes.by_dataset.get_mut(dataset) {
                change(lane);
            }
        })
        .await;
    }

    /// Changes the state of the lanes, and applies the batches for which no lane has to be waited for any more.
    async fn change(&self, change: impl FnOnce(&mut Lanes)) {
        let whole = {
            let mut state = self.state();
            change(&mut state);
            state.take_whole()
        };
        self.changed.notify_waiters();
        for batch in whole {
            apply_batch(batch).await;
        }
    }

    /// Records that the lane's round has ended. After an error, no batch is applied to which it has not come. Otherwise
    /// waits until no lane runs. Returns true earlier if a batch waits for an export that was published after the lane
    /// was listed: the lane has to be read again.
    pub(crate) async fn has_ended(&self, dataset: &str, has_failed: bool) -> bool {
        let state = if has_failed { LaneState::Failed } else { LaneState::Ended };
        self.change_lane(dataset, |lane| lane.state = state).await;
        loop {
            let changed = self.changed.notified();
            if has_failed || !self.state().is_any_running() {
                return false;
            }
            if self.state().by_dataset.get(dataset).is_some_and(|lane| lane.state == LaneState::Running) {
                return true;
            }
            changed.await;
        }
    }

    /// Returns the batch to which a lane's export belongs. Returns `None` if the export is to be applied by itself.
    /// `numbers` reads the number of each export of the batch, by dataset.
    ///
    /// # Errors
    /// [`Error::BatchIncomplete`] if the numbers of some exports can't be read.
    pub(super) async fn batch<F>(
        &self,
        batch: Option<&ManifestBatch>,
        observer: &dyn Observer,
        numbers: impl Fn(Uuid) -> F,
    ) -> Result<Option<(Uuid, Arc<LaneBatch>)>, Error>
    where
        F: Future<Output = Result<BTreeMap<String, u64>, Error>>,
    {
        if !self.are_several {
            return Ok(None);
        }
        let Some(ManifestBatch { id, datasets }) = batch else {
            if !self.has_told.swap(true, Ordering::Relaxed) {
                observer.notice(
                    "warning: exports of this round belong to no batch: joins between tables hold again after the next \
                     batch",
                );
            }
            return Ok(None);
        };
        let id: Uuid = id.parse().map_err(|_| Error::refused("a batch has no id"))?;
        let batch = Arc::clone(self.state().batches.entry(id).or_default());
        let known = batch.numbers.get_or_try_init(|| numbers(id)).await?.len();
        if *datasets != known.to_string() {
            let why = format!("batch_incomplete: {known} of the {datasets} exports of the batch {id} are there");
            return Err(Error::BatchIncomplete(why));
        }
        Ok(Some((id, batch)))
    }

    /// Applies an export of a batch, together with those of the other lanes.
    pub(super) async fn apply(
        &self,
        id: Uuid,
        dataset: &str,
        export: ReadyExport,
        turn: &mut Option<Turn>,
    ) -> Result<Applied, Error> {
        let (outcome, mut applied) = oneshot::channel();
        let waiting = WaitingExport { export, outcome };
        self.change(|lanes| drop(lanes.waiting.entry(id).or_default().insert(dataset.to_owned(), waiting))).await;
        if let Ok(applied) = applied.try_recv() {
            return applied;
        }
        *turn = None;
        let applied = applied.await.map_err(|_| Error::refused("the batch was given up"))?;
        *turn = Some(self.turn().await);
        applied
    }
}

impl Lanes {
    fn is_any_running(&self) -> bool {
        self.by_dataset.values().any(|lane| lane.state == LaneState::Running)
    }

    /// Removes and returns the exports of each batch for which no lane has to be waited for. Ends the waiting for a
    /// batch that can't be applied as a whole.
    fn take_whole(&mut self) -> Vec<Vec<WaitingExport>> {
        let mut whole = Vec::new();
        let ids: Vec<Uuid> = self.waiting.keys().copied().collect();
        for id in ids {
            let before = self.exports_before(id);
            let is_at = |state: LaneState| before.iter().find(|export| export.state == state);
            if is_at(LaneState::Failed).is_some() {
                self.stop(id, || Error::BatchStopped);
            } else if let Some(ExportBefore { dataset, number, .. }) = is_at(LaneState::Ended) {
                let why = format!("batch_incomplete: the export {number} of {dataset}, of the same batch, is missing");
                self.stop(id, || Error::refused(&*why));
            } else if before.is_empty() {
                self.batches.remove(&id);
                whole.extend(self.waiting.remove(&id).map(|arrived| arrived.into_values().collect::<Vec<_>>()));
            }
        }
        // No service gives batches an order in which lanes wait for each other. A wrong one can't stop the round.
        let running = self.by_dataset.values().filter(|lane| lane.state == LaneState::Running).count();
        let do_all_wait = self.waiting.values().map(BTreeMap::len).sum::<usize>() == running;
        if let Some(id) = self.waiting.keys().next().copied().filter(|_| whole.is_empty() && do_all_wait) {
            self.stop(id, || Error::refused("batch_incomplete: its batch and another one wait for each other"));
        }
        whole
    }

    /// Returns the exports of a batch to which their lanes have not come. Marks each lane that has ended as one to be
    /// read again, once.
    fn exports_before(&mut self, id: Uuid) -> Vec<ExportBefore> {
        let numbers = self.batches.get(&id).and_then(|batch| batch.numbers.get());
        let mut before = Vec::new();
        for (dataset, number) in numbers.into_iter().flatten() {
            let has_arrived = self.waiting.get(&id).is_some_and(|arrived| arrived.contains_key(dataset));
            let lane = self.by_dataset.get_mut(dataset);
            let Some(lane) = lane.filter(|lane| !has_arrived && lane.number < *number) else { continue };
            if lane.state == LaneState::Ended && self.read_again.insert((id, dataset.clone())) {
                lane.state = LaneState::Running;
            }
            before.push(ExportBefore { dataset: dataset.clone(), number: *number, state: lane.state });
        }
        before
    }

    /// Ends the waiting for a batch that is not applied.
    fn stop(&mut self, id: Uuid, why: impl Fn() -> Error) {
        for waiting in self.waiting.remove(&id).unwrap_or_default().into_values() {
            drop(waiting.outcome.send(Err(why())));
        }
    }
}

/// An export of a batch, to which its lane has not come.
struct ExportBefore {
    dataset: String,
    number: u64,
    state: LaneState,
}

/// Applies exports in one transaction. If some can't be applied, applies the others without them.
async fn apply_batch(mut exports: Vec<WaitingExport>) {
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
                        Error::About { subject: "its batch".to_owned(), cause: Box::new(cause) }
                    }
                    own => own,
                });
                for (at, waiting) in waiting.enumerate() {
                    match error.take_if(|_| at == member.unwrap_or(0)) {
                        Some(own) => drop(waiting.outcome.send(Err(own))),
                        None if is_of_another_lane => exports.push(waiting),
                        None => drop(waiting.outcome.send(Err(Error::BatchStopped))),
                    }
                }
            }
        }
    }
}
