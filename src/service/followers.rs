//! Clients that wait for jobs by `events` or `?wait=`: limits their number, and polls the database once for all of
//! them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use crate::job::Job;
use crate::key::Prefix;
use crate::service::Error;
use crate::service::deadline::with_timeout;
use crate::service::shares::{Share, Shares};
use crate::store::Store;
use crate::store::transitions::{Ending, Endings};
use cdc_manifest::JobId;
use http_client::pause::Backoff;

/// Maximum number of followers in total. It leaves half of the open requests to other calls.
const MAX_FOLLOWERS: usize = 500;
/// Maximum interval between polls of followed jobs.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval before the first poll. A newly followed job may be short, so the interval starts small and doubles with
/// each poll.
const FIRST_POLL: Duration = Duration::from_millis(50);
const POLL_BACKOFF: Backoff = Backoff::new(FIRST_POLL, POLL_INTERVAL);
/// Number of consecutive failed polls after which followers are informed that their job is lost.
const MAX_FAILED_POLLS: u32 = 5;

/// The client whose followers are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subscriber {
    Key(Prefix),
    /// A caller without a key, by its address.
    Address(IpAddr),
}

/// The result of polling a job.
#[derive(Clone, Debug)]
pub(super) struct Poll {
    pub(super) begun: Instant,
    pub(super) outcome: PollOutcome,
}

#[derive(Clone, Debug)]
pub(super) enum PollOutcome {
    /// The job with all its exports, also those that the follower may not see.
    Job(Arc<Job>),
    /// The last poll failed; the next one may succeed.
    Failed,
    /// The job no longer exists, or the database has failed for some time.
    Lost,
}

/// All followers in this process.
#[derive(Debug)]
pub(super) struct Followers {
    shared: Arc<Shared>,
    _polling: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    places: Arc<Shares<Subscriber>>,
    followed: Mutex<HashMap<JobId, PolledJob>>,
    /// Notified when a follower joins.
    joined: Notify,
}

#[derive(Debug)]
struct PolledJob {
    polls: watch::Sender<Poll>,
    followers: usize,
}

/// A subscription of a client to a job.
#[derive(Debug)]
pub(super) struct Follower {
    shared: Arc<Shared>,
    _place: Share<Subscriber>,
    job: JobId,
    polls: watch::Receiver<Poll>,
}

impl Followers {
    /// Creates an empty set of followers, and starts a task that polls their jobs until the set is dropped.
    pub(super) fn new(store: Store) -> Followers {
        let endings = store.endings();
        let places = Shares::new(MAX_FOLLOWERS);
        let shared = Arc::new(Shared { store, places, followed: Mutex::default(), joined: Notify::new() });
        let polling = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&shared).poll_continuously(endings)));
        Followers { shared, _polling: polling }
    }

    /// Adds a follower. Later polls report the job's state to it, the first within a second.
    ///
    /// # Errors
    /// If the subscriber has its share of the places.
    pub(super) fn join(&self, subscriber: Subscriber, job: JobId) -> Result<Follower, Error> {
        let place = self.shared.places.take(subscriber).ok_or(Error::TooManyFollowers)?;
        let mut followed = self.shared.followed();
        let polled = followed.entry(job).or_insert_with(|| {
            let unknown = Poll { begun: Instant::now(), outcome: PollOutcome::Failed };
            PolledJob { polls: watch::Sender::new(unknown), followers: 0 }
        });
        polled.followers += 1;
        let polls = polled.polls.subscribe();
        drop(followed);
        self.shared.joined.notify_one();
        Ok(Follower { shared: Arc::clone(&self.shared), _place: place, job, polls })
    }
}

impl Follower {
    pub(super) async fn next(&mut self) -> Poll {
        match self.polls.changed().await {
            Ok(()) => self.polls.borrow_and_update().clone(),
            // Unreachable: the job is polled as long as it has a follower.
            Err(_) => Poll { begun: Instant::now(), outcome: PollOutcome::Lost },
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut followed = self.shared.followed();
        if let Some(polled) = followed.get_mut(&self.job) {
            polled.followers -= 1;
            if polled.followers == 0 {
                followed.remove(&self.job);
            }
        }
    }
}

impl Shared {
    /// Polls all followed jobs periodically. When this process ends a job, polls that job immediately.
    async fn poll_continuously(self: Arc<Shared>, mut endings: Endings) {
        let (mut backoff, mut failed) = (POLL_BACKOFF, 0);
        let mut next = Instant::now();
        loop {
            if self.followed().is_empty() {
                self.joined.notified().await;
                (backoff, next) = (POLL_BACKOFF, Instant::now() + FIRST_POLL);
                continue;
            }
            let ended = tokio::select! {
                () = sleep_until(next) => {
                    next = Instant::now() + backoff.next_pause();
                    Ending::Any
                }
                () = self.joined.notified() => {
                    // A new follower must not delay the poll that other followers wait for.
                    (backoff, next) = (POLL_BACKOFF, next.min(Instant::now() + FIRST_POLL));
                    continue;
                }
                ended = endings.next() => ended,
            };
            let jobs: Vec<JobId> = match ended {
                Ending::Job(job) => self.followed().contains_key(&job).then_some(job).into_iter().collect(),
                Ending::Any => self.followed().keys().copied().collect(),
            };
            if !jobs.is_empty() {
                failed = self.poll(&jobs, failed).await;
            }
        }
    }

    /// Polls the given jobs and notifies their followers. Returns the number of consecutive failed polls.
    async fn poll(&self, jobs: &[JobId], failed: u32) -> u32 {
        let begun = Instant::now();
        let (jobs_now, failed) = match with_timeout(self.store.jobs_by_id(jobs)).await {
            Ok(jobs) => (jobs.into_iter().map(|job| (job.id(), Arc::new(job))).collect(), 0),
            Err(Error::DatabaseUnavailable(_)) => (HashMap::new(), failed + 1),
            Err(_) => (HashMap::new(), MAX_FAILED_POLLS),
        };
        let followed = self.followed();
        for (id, polled) in jobs.iter().filter_map(|id| Some((id, followed.get(id)?))) {
            let outcome = match jobs_now.get(id) {
                Some(job) => PollOutcome::Job(Arc::clone(job)),
                None if (1..MAX_FAILED_POLLS).contains(&failed) => PollOutcome::Failed,
                None => PollOutcome::Lost,
            };
            polled.polls.send_replace(Poll { begun, outcome });
        }
        failed
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<JobId, PolledJob>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
