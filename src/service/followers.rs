//! Clients that wait for jobs, by `events` or `?wait=`: how many there may be, and one poll of the database for all of
//! them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use crate::duration::Backoff;
use crate::job::{Job, JobId};
use crate::key::Prefix;
use crate::service::Error;
use crate::service::deadline::with_timeout;
use crate::store::Store;
use crate::store::transitions::{Ending, Endings};

/// Followers in all: a third of the connections that one address may have, a proxy's, say, is left to other calls; and
/// of one key half.
const MOST: usize = 500;
/// Followers of one key or address: it takes two of them to use all up.
const MOST_OF_ONE: usize = 250;
/// Followed jobs are polled this often.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// A job that a client begins to follow may be a short one: it is polled after this time first, and then after twice as
/// long each time.
const FIRST_POLL: Duration = Duration::from_millis(50);
/// The pauses between polls.
const POLLS: Backoff = Backoff::new(FIRST_POLL, POLL_EVERY);
/// After this many failed polls in a row followers are told that their jobs are lost.
const FAILED_POLLS: u32 = 5;

/// The client that a follower is counted for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subscriber {
    /// The holder of this key.
    Key(Prefix),
    /// A caller without a key, by its address.
    Address(IpAddr),
}

/// What a poll of a job showed.
#[derive(Clone, Debug)]
pub(super) struct Poll {
    /// When the poll began.
    pub(super) begun: Instant,
    pub(super) outcome: PollOutcome,
}

#[derive(Clone, Debug)]
pub(super) enum PollOutcome {
    Job(Arc<Job>),
    /// The database failed just now.
    Failed,
    /// There is no such job any more, or the database has failed for some time.
    Lost,
}

/// All followers of jobs in this process.
#[derive(Debug)]
pub(super) struct Followers {
    shared: Arc<Shared>,
    _polling: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    followed: Mutex<Followed>,
    /// A follower has joined.
    came: Notify,
}

#[derive(Debug, Default)]
struct Followed {
    jobs: HashMap<JobId, PolledJob>,
    of_subscriber: HashMap<Subscriber, usize>,
    followers: usize,
}

#[derive(Debug)]
struct PolledJob {
    polls: watch::Sender<Poll>,
    followers: usize,
}

/// A client that follows a job.
#[derive(Debug)]
pub(super) struct Follower {
    shared: Arc<Shared>,
    subscriber: Subscriber,
    job: JobId,
    polls: watch::Receiver<Poll>,
}

impl Followers {
    /// No followers yet. Polls while there are some, until it is dropped.
    pub(super) fn new(store: Store) -> Followers {
        let endings = store.endings();
        let shared = Arc::new(Shared { store, followed: Mutex::default(), came: Notify::new() });
        let polling = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&shared).poll_on(endings)));
        Followers { shared, _polling: polling }
    }

    /// Adds a follower. It learns of its job's state from now on by a poll that begins later, within a second.
    ///
    /// # Errors
    /// If the subscriber, or all together, have as many followers as they may.
    pub(super) fn join(&self, subscriber: Subscriber, job: JobId) -> Result<Follower, Error> {
        let mut followed = self.shared.followed();
        let of_subscriber = followed.of_subscriber.get(&subscriber).copied().unwrap_or(0);
        if followed.followers >= MOST || of_subscriber >= MOST_OF_ONE {
            return Err(Error::TooManyFollowers);
        }
        followed.followers += 1;
        followed.of_subscriber.insert(subscriber.clone(), of_subscriber + 1);
        let polled = followed.jobs.entry(job).or_insert_with(|| {
            let unknown = Poll { begun: Instant::now(), outcome: PollOutcome::Failed };
            PolledJob { polls: watch::Sender::new(unknown), followers: 0 }
        });
        polled.followers += 1;
        let polls = polled.polls.subscribe();
        drop(followed);
        self.shared.came.notify_one();
        Ok(Follower { shared: Arc::clone(&self.shared), subscriber, job, polls })
    }
}

impl Follower {
    /// The next poll of its job.
    pub(super) async fn next(&mut self) -> Poll {
        match self.polls.changed().await {
            Ok(()) => self.polls.borrow_and_update().clone(),
            // Never: a follower keeps its job polled.
            Err(_) => Poll { begun: Instant::now(), outcome: PollOutcome::Lost },
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut followed = self.shared.followed();
        followed.followers -= 1;
        if let Some(number) = followed.of_subscriber.get_mut(&self.subscriber) {
            *number -= 1;
            if *number == 0 {
                followed.of_subscriber.remove(&self.subscriber);
            }
        }
        if let Some(polled) = followed.jobs.get_mut(&self.job) {
            polled.followers -= 1;
            if polled.followers == 0 {
                followed.jobs.remove(&self.job);
            }
        }
    }
}

impl Shared {
    /// Polls all followed jobs from time to time, and a job that this process brought to its end at once.
    async fn poll_on(self: Arc<Shared>, mut endings: Endings) {
        let (mut backoff, mut failed) = (POLLS, 0);
        let mut next = Instant::now();
        loop {
            if self.followed().followers == 0 {
                self.came.notified().await;
                (backoff, next) = (POLLS, Instant::now() + FIRST_POLL);
                continue;
            }
            let ended = tokio::select! {
                () = sleep_until(next) => {
                    next = Instant::now() + backoff.next_pause();
                    Ending::Any
                }
                () = self.came.notified() => {
                    // A new follower can't put off the poll that others wait for.
                    (backoff, next) = (POLLS, next.min(Instant::now() + FIRST_POLL));
                    continue;
                }
                ended = endings.next() => ended,
            };
            let jobs: Vec<JobId> = match ended {
                Ending::Job(job) => self.followed().jobs.contains_key(&job).then_some(job).into_iter().collect(),
                Ending::Any => self.followed().jobs.keys().copied().collect(),
            };
            if !jobs.is_empty() {
                failed = self.poll(&jobs, failed).await;
            }
        }
    }

    /// Polls these jobs and tells their followers. Returns how many polls have failed in a row.
    async fn poll(&self, jobs: &[JobId], failed: u32) -> u32 {
        let begun = Instant::now();
        let (jobs_now, failed) = match with_timeout(self.store.jobs_by_id(jobs)).await {
            Ok(jobs) => (jobs.into_iter().map(|job| (job.id, Arc::new(job))).collect(), 0),
            Err(Error::DatabaseUnavailable(_)) => (HashMap::new(), failed + 1),
            Err(_) => (HashMap::new(), FAILED_POLLS),
        };
        let followed = self.followed();
        for (id, polled) in jobs.iter().filter_map(|id| Some((id, followed.jobs.get(id)?))) {
            let outcome = match jobs_now.get(id) {
                Some(job) => PollOutcome::Job(Arc::clone(job)),
                None if (1..FAILED_POLLS).contains(&failed) => PollOutcome::Failed,
                None => PollOutcome::Lost,
            };
            polled.polls.send_replace(Poll { begun, outcome });
        }
        failed
    }

    fn followed(&self) -> MutexGuard<'_, Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
