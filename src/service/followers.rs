//! Those who wait for jobs, by `events` or `?wait=`: how many there may be, and one look at the database for all of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use crate::job::{Job, JobId};
use crate::key::Prefix;
use crate::service::{Error, with_timeout};
use crate::store::Store;
use crate::store::transitions::{Ended, Endings};

/// Together they leave a third of the places that one address has, a proxy's, say; and one key's leave half of its own.
const MOST: usize = 500;
/// Two keys or addresses together could have all.
const MOST_OF_ONE: usize = 250;
/// Jobs are looked at so often while somebody follows them.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A job that somebody begins to follow may be a short one: it is looked at after this time, and after twice as long each time.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// Followers outlive so many failed looks, less one.
const FAILED_LOOKS: u32 = 5;

/// Who follows: what a share is counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// Whoever has this key.
    Key(Prefix),
    /// Whoever calls from there without a key.
    Address(IpAddr),
}

/// What a look at a job showed.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// When it was begun.
    pub(super) begun: Instant,
    pub(super) seen: Seen,
}

#[derive(Clone, Debug)]
pub(super) enum Seen {
    Job(Arc<Job>),
    /// The database failed just now.
    Nothing,
    /// There is no such job any more, or the database has failed for some time.
    Lost,
}

/// All who follow jobs of this process.
#[derive(Debug)]
pub(super) struct Followers {
    shared: Arc<Shared>,
    _looks: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    followed: Mutex<Followed>,
    /// Somebody has begun to follow.
    came: Notify,
}

#[derive(Debug, Default)]
struct Followed {
    jobs: HashMap<JobId, Watched>,
    of_party: HashMap<Party, usize>,
    followers: usize,
}

#[derive(Debug)]
struct Watched {
    looks: watch::Sender<Look>,
    followers: usize,
}

/// One who follows a job.
#[derive(Debug)]
pub(super) struct Follower {
    shared: Arc<Shared>,
    party: Party,
    job: JobId,
    looks: watch::Receiver<Look>,
}

impl Followers {
    /// Nobody yet. Looks until it is dropped, while there is somebody.
    pub(super) fn new(store: Store) -> Followers {
        let endings = store.endings();
        let shared = Arc::new(Shared { store, followed: Mutex::default(), came: Notify::new() });
        let looks = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&shared).look_on(endings)));
        Followers { shared, _looks: looks }
    }

    /// One more. What its job is like from now on, it is told by a look that began later, within a second.
    ///
    /// # Errors
    /// If there are as many of the party or of all as may be.
    pub(super) fn join(&self, party: Party, job: JobId) -> Result<Follower, Error> {
        let mut followed = self.shared.followed();
        let of_party = followed.of_party.get(&party).copied().unwrap_or(0);
        if followed.followers >= MOST || of_party >= MOST_OF_ONE {
            return Err(Error::TooManyFollowers);
        }
        followed.followers += 1;
        followed.of_party.insert(party.clone(), of_party + 1);
        let watched = followed.jobs.entry(job).or_insert_with(|| {
            let nothing = Look { begun: Instant::now(), seen: Seen::Nothing };
            Watched { looks: watch::Sender::new(nothing), followers: 0 }
        });
        watched.followers += 1;
        let looks = watched.looks.subscribe();
        drop(followed);
        self.shared.came.notify_one();
        Ok(Follower { shared: Arc::clone(&self.shared), party, job, looks })
    }
}

impl Follower {
    /// The next look at its job.
    pub(super) async fn look(&mut self) -> Look {
        match self.looks.changed().await {
            Ok(()) => self.looks.borrow_and_update().clone(),
            // Never: who follows a job keeps it watched.
            Err(_) => Look { begun: Instant::now(), seen: Seen::Lost },
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut followed = self.shared.followed();
        followed.followers -= 1;
        if let Some(number) = followed.of_party.get_mut(&self.party) {
            *number -= 1;
            if *number == 0 {
                followed.of_party.remove(&self.party);
            }
        }
        if let Some(watched) = followed.jobs.get_mut(&self.job) {
            watched.followers -= 1;
            if watched.followers == 0 {
                followed.jobs.remove(&self.job);
            }
        }
    }
}

impl Shared {
    /// Looks at all that is followed, and at a job that this process brought to its end right then.
    async fn look_on(self: Arc<Shared>, mut endings: Endings) {
        let (mut pause, mut failed) = (FIRST_LOOK, 0);
        let mut next = Instant::now();
        loop {
            if self.followed().followers == 0 {
                self.came.notified().await;
                (pause, next) = (FIRST_LOOK, Instant::now() + FIRST_LOOK);
                continue;
            }
            let ended = tokio::select! {
                () = sleep_until(next) => {
                    next = Instant::now() + pause;
                    pause = (pause * 2).min(LOOK_EVERY);
                    Ended::Any
                }
                () = self.came.notified() => {
                    // Whoever comes can't put off the look that others wait for.
                    (pause, next) = (FIRST_LOOK, next.min(Instant::now() + FIRST_LOOK));
                    continue;
                }
                ended = endings.next() => ended,
            };
            let jobs: Vec<JobId> = match ended {
                Ended::Job(job) => self.followed().jobs.contains_key(&job).then_some(job).into_iter().collect(),
                Ended::Any => self.followed().jobs.keys().copied().collect(),
            };
            if !jobs.is_empty() {
                failed = self.look_at(&jobs, failed).await;
            }
        }
    }

    /// Looks at these jobs and tells their followers. How many looks have failed in a row.
    async fn look_at(&self, jobs: &[JobId], failed: u32) -> u32 {
        let begun = Instant::now();
        let (seen, failed) = match with_timeout(self.store.followed(jobs)).await {
            Ok(seen) => (seen.into_iter().map(|job| (job.id, Arc::new(job))).collect(), 0),
            Err(Error::DatabaseUnavailable(_)) => (HashMap::new(), failed + 1),
            Err(_) => (HashMap::new(), FAILED_LOOKS),
        };
        let followed = self.followed();
        for (id, watched) in jobs.iter().filter_map(|id| Some((id, followed.jobs.get(id)?))) {
            let seen = match seen.get(id) {
                Some(job) => Seen::Job(Arc::clone(job)),
                None if (1..FAILED_LOOKS).contains(&failed) => Seen::Nothing,
                None => Seen::Lost,
            };
            watched.looks.send_replace(Look { begun, seen });
        }
        failed
    }

    fn followed(&self) -> MutexGuard<'_, Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
