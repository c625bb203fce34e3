//! The violations that a run found, and the faults that the nemesis made meanwhile.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use chrono::{DateTime, Utc};

use crate::plan::Move;
use crate::recorder::Deaths;
use crate::replica::Stopped;

/// Locks data even after a panic of another holder: the data is still of use.
pub(crate) fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) const EXPIRE: &str = "expiry";

pub(crate) const UPHEAVAL: &str = "upheaval";

#[derive(Clone)]
pub(crate) struct Done {
    /// Index of the replica that the act met. `None`: all of them.
    pub(crate) replica: Option<usize>,
    pub(crate) what: &'static str,
    pub(crate) from: DateTime<Utc>,
    pub(crate) to: DateTime<Utc>,
}

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

pub(crate) struct Counts {
    pub(crate) deaths: Deaths,
    pub(crate) counted: Vec<(&'static str, usize, Least)>,
}

/// The minimum of a count in a valid run of 180 s or more with three replicas. Other runs need less in proportion.
#[derive(Clone, Copy)]
pub(crate) enum Least {
    Any,
    Of(usize),
    /// The minimum in a run with this kind of move.
    With(Move, usize),
}

impl Counts {
    /// Returns the reasons why a run of this length proves nothing. Returns none for a valid run.
    pub(crate) fn invalid(&self, secs: u64, replicas: usize, moves: &[Move]) -> Vec<String> {
        let too_few = self.counted.iter().filter_map(|(what, found, least)| {
            let least = match least {
                Least::Of(least) => *least,
                Least::With(kind, least) if moves.contains(kind) => *least,
                _ => 0,
            };
            let least = (least as u64 * secs.min(180) * replicas as u64).div_ceil(180 * 3) as usize;
            (*found < least).then(|| format!("{found} {what}, of {least} at least"))
        });
        too_few.collect()
    }

    pub(crate) fn text(&self) -> String {
        let Deaths { of, leases_ended, unexplained } = &self.deaths;
        let counted: String = self.counted.iter().map(|(what, found, _)| format!("{found} {what}, ")).collect();
        format!(
            "{counted}deaths {of:?}
{leases_ended} more attempts whose leases were ended early, {unexplained} that ended with no fault near"
        )
    }
}
