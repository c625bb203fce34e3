//! The violations that a run found, and the faults that the nemesis made meanwhile.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use chrono::{DateTime, Utc};

use crate::moves::Move;
use crate::receiver::Posts;
use crate::recorder::Deaths;
use crate::replica::Stopped;

/// A lock that a panic elsewhere doesn't spoil: the numbers in it are of use all the same.
pub(crate) fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The act that ends leases early.
pub(crate) const EXPIRE: &str = "expiry";

/// The act that turns the whole database over.
pub(crate) const UPHEAVAL: &str = "upheaval";

/// One act of the nemesis, as it happened.
#[derive(Clone)]
pub(crate) struct Done {
    /// Whom it met; `None`: all of them.
    pub(crate) replica: Option<usize>,
    pub(crate) what: &'static str,
    pub(crate) from: DateTime<Utc>,
    pub(crate) to: DateTime<Utc>,
}

/// Shared by everything that looks or acts.
pub(crate) struct Report {
    violations: Mutex<BTreeMap<&'static str, Vec<String>>>,
    acts: Mutex<Vec<Done>>,
    stops: Mutex<Vec<Stopped>>,
    log: Mutex<std::fs::File>,
}

impl Report {
    pub(crate) fn new(folder: &Path) -> Result<Report> {
        Ok(Report {
            violations: Mutex::default(),
            acts: Mutex::default(),
            stops: Mutex::default(),
            log: Mutex::new(std::fs::File::create(folder.join("acts.log"))?),
        })
    }

    /// Records that an invariant, by its number in docs/RELIABILITY.md, doesn't hold.
    pub(crate) fn red(&self, invariant: &'static str, what: impl Into<String>) {
        let what = what.into();
        let now = Utc::now().format("%H:%M:%S%.3f");
        let _ = writeln!(locked(&self.log), "{now} RED {invariant}: {what}");
        locked(&self.violations).entry(invariant).or_default().push(format!("{now} {what}"));
    }

    /// Says what is about to be done.
    pub(crate) fn announce(&self, act: &str) {
        let _ = writeln!(locked(&self.log), "{} {act}", Utc::now().format("%H:%M:%S%.3f"));
    }

    pub(crate) fn acted(&self, replica: Option<usize>, what: &'static str, from: DateTime<Utc>) {
        locked(&self.acts).push(Done { replica, what, from, to: Utc::now() });
    }

    pub(crate) fn stopped(&self, stop: Stopped) {
        locked(&self.stops).push(stop);
    }

    pub(crate) fn acts(&self) -> Vec<Done> {
        locked(&self.acts).clone()
    }

    pub(crate) fn stops(&self) -> Vec<Stopped> {
        locked(&self.stops).clone()
    }

    pub(crate) fn violations(&self) -> BTreeMap<&'static str, Vec<String>> {
        locked(&self.violations).clone()
    }

    pub(crate) fn has(&self, invariant: &str) -> bool {
        locked(&self.violations).contains_key(invariant)
    }

    pub(crate) fn is_red(&self) -> bool {
        !locked(&self.violations).is_empty()
    }
}

/// What a run was worth.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) deaths: Deaths,
    /// Stops during which somebody else took over what the stopped process ran.
    pub(crate) zombies: usize,
    pub(crate) completed: usize,
    pub(crate) skipped: usize,
    /// Refused, since the position was given up because of the change log's bound.
    pub(crate) given_up: usize,
    pub(crate) failed: usize,
    pub(crate) cancelled: usize,
    pub(crate) accepted: usize,
    /// The numbers of jobs of several datasets that were committed, that failed, and that were cancelled.
    pub(crate) jobs_of_datasets: [usize; 3],
    pub(crate) answers_lost: u64,
    pub(crate) readers_silenced: u64,
    pub(crate) commits: usize,
    /// The statements of the bystander that were answered.
    pub(crate) statements: usize,
    pub(crate) looks: usize,
    /// What the receiver of events was told.
    pub(crate) posts: Posts,
    /// Replays compared with the table's history.
    pub(crate) replays: usize,
}

/// What makes a run of three minutes or more with three replicas valid. A shorter one needs less, in proportion, and so
/// does one with fewer replicas.
const LEAST_DEATHS: usize = 200;
const LEAST_ZOMBIES: usize = 20;
const LEAST_COMPLETED: usize = 60;
const LEAST_SKIPPED: usize = 5;
const LEAST_JOBS_OF_DATASETS: usize = 10;
/// The least that a run with backfills needs.
const LEAST_GIVEN_UP: usize = 1;

impl Counts {
    /// Why a run of so many seconds proves nothing, if it doesn't.
    pub(crate) fn invalid(&self, secs: u64, replicas: usize, moves: &[Move]) -> Vec<String> {
        let share = |least: usize| (least as u64 * secs.min(180) * replicas as u64).div_ceil(180 * 3) as usize;
        let given_up = if moves.contains(&Move::Backfill) { LEAST_GIVEN_UP } else { 0 };
        let least = [
            ("deaths", self.deaths.total(), share(LEAST_DEATHS)),
            ("zombies", self.zombies, share(LEAST_ZOMBIES)),
            ("completed exports", self.completed, share(LEAST_COMPLETED)),
            ("completed jobs of several datasets", self.jobs_of_datasets[0], share(LEAST_JOBS_OF_DATASETS)),
            ("skipped exports", self.skipped, share(LEAST_SKIPPED)),
            ("events posted again", self.posts.repeated(), share(LEAST_COMPLETED)),
            ("ends told and held against the database", self.posts.checked(), share(LEAST_COMPLETED)),
            ("exports refused because of the change log", self.given_up, share(given_up)),
        ];
        let too_few = least.iter().filter(|(_, found, least)| found < least);
        too_few.map(|(what, found, least)| format!("{found} {what}, of {least} at least")).collect()
    }
}
