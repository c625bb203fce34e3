//! Limits the number of open jobs, in all and of each key.
//!
//! Counting them for each submission would be slow: while an export runs for hours, the index of open jobs keeps an
//! entry for each job that ended since. One row with the number would make all submissions wait for its lock.
//!
//! So each process counts the open jobs about once a second, and adds the jobs that it creates in between. Each process
//! alone respects the limit. Several processes together may exceed it by the jobs that the others create in that
//! second.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::key::Prefix;
use crate::store::{Error, Store};

/// The time for which a count is used.
const COUNT_TTL: Duration = Duration::from_secs(1);

/// The number of open jobs, as far as this process knows it.
#[derive(Debug, Default)]
pub(super) struct OpenJobs {
    open: Mutex<OpenCount>,
    /// Held by the submission that counts. Other submissions wait for its count.
    counting: tokio::sync::Mutex<()>,
}

/// A count of the open jobs, and the jobs that this process adds to it.
#[derive(Clone, Copy, Debug, Default)]
struct OpenCount {
    /// The counted number and the time of the count. `None` if this process has not counted yet.
    counted: Option<(u32, Instant)>,
    /// The number of jobs that this process created since the count.
    made: u32,
    /// The number of jobs that this process is creating.
    making: u32,
    /// The turn of the jobs that were claimed last, as of the count.
    current_turn: DateTime<Utc>,
}

/// The outcome of an attempt to reserve a slot for one more open job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reservation {
    Reserved,
    Full,
    /// The count is too old, or some of the counted jobs may have ended.
    CountAgain,
}

impl OpenCount {
    /// Returns the number of open jobs, with those that this process is creating.
    fn total(&self) -> u32 {
        let counted = self.counted.map_or(0, |(counted, _)| counted);
        counted.saturating_add(self.made).saturating_add(self.making)
    }

    /// Reserves a slot if fewer than `max` jobs are open, by a count that is not older than `age`.
    fn reserve(&mut self, max: u32, age: Duration) -> Reservation {
        match self.counted {
            Some((counted, at)) if at.elapsed() <= age => {
                if counted >= max {
                    return Reservation::Full;
                }
                if self.total() >= max {
                    return Reservation::CountAgain;
                }
                self.making += 1;
                Reservation::Reserved
            }
            _ => Reservation::CountAgain,
        }
    }
}

/// The right to create one more open job. Dropping the slot gives up the right.
#[derive(Debug)]
struct Slot<'a> {
    open_jobs: &'a OpenJobs,
    is_used: bool,
}

impl Slot<'_> {
    /// Records that the job is created. Call it after the commit.
    fn confirm(mut self) {
        self.is_used = true;
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut open = self.open_jobs.count();
        open.making -= 1;
        open.made += u32::from(self.is_used);
    }
}

impl OpenJobs {
    fn count(&self) -> MutexGuard<'_, OpenCount> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves a count that began at `at`. The count contains the `made` jobs that this process had created by then.
    fn record_count(&self, counted: u32, at: Instant, made: u32) {
        let mut open = self.count();
        open.counted = Some((counted, at));
        open.made -= made;
    }

    fn reserve(&self, max: u32, age: Duration) -> (Reservation, Option<Slot<'_>>) {
        let reservation = self.count().reserve(max, age);
        (reservation, (reservation == Reservation::Reserved).then(|| Slot { open_jobs: self, is_used: false }))
    }
}

/// The slots of one more job: among all open jobs, and among those that the caller's key asked for.
#[derive(Debug)]
pub(super) struct Slots<'a> {
    all: Slot<'a>,
    of_key: Option<Slot<'a>>,
    pub(super) current_turn: DateTime<Utc>,
}

impl Slots<'_> {
    /// Records that the job is created. Call it after the commit.
    pub(super) fn confirm(self) {
        self.all.confirm();
        if let Some(of_key) = self.of_key {
            of_key.confirm();
        }
    }
}

/// The limit that was reached.
#[derive(Clone, Copy, Debug)]
pub(super) enum Full {
    All,
    /// This limit on the open jobs of the caller's key, which follows from the places that are left.
    OfKey(u32),
}

impl OpenJobs {
    /// Reserves a slot. Calls `count` for the number of open jobs if the last count is too old. Returns `None` if `max`
    /// jobs are open.
    async fn slot(
        &self,
        max: u32,
        count: impl AsyncFnOnce() -> Result<i64, sqlx::Error>,
    ) -> Result<Option<Slot<'_>>, Error> {
        let (reservation, slot) = self.reserve(max, COUNT_TTL);
        if reservation != Reservation::CountAgain {
            return Ok(slot);
        }
        let _counting = self.counting.lock().await;
        // Another submission may have counted in the meantime.
        let (reservation, slot) = self.reserve(max, COUNT_TTL);
        if reservation != Reservation::CountAgain {
            return Ok(slot);
        }
        // At worst, jobs that are created from here on are counted twice.
        let (at, made) = (Instant::now(), self.count().made);
        let counted = u32::try_from(count().await?).unwrap_or(u32::MAX);
        self.record_count(counted, at, made);
        // Accepts this count at any age. Over a slow connection it may be old by now, which does not mean that the
        // limit is reached.
        Ok(self.reserve(max, Duration::MAX).1)
    }
}

impl Store {
    /// Reserves the slots of one more job, unless `max` jobs are open, or the caller's key has half as many open jobs
    /// as there are places left. `of_key` is the key and its open jobs.
    pub(super) async fn slots<'s>(
        &'s self,
        conn: &mut PgConnection,
        max: u32,
        of_key: Option<(&Prefix, &'s OpenJobs)>,
    ) -> Result<Result<Slots<'s>, Full>, Error> {
        let count = async || {
            let count = sqlx::query_as(include_str!("open_jobs/count.sql")).bind(i64::from(max));
            let (open, turn): (i64, DateTime<Utc>) = count.fetch_one(&mut *conn).await?;
            self.open_jobs.count().current_turn = turn;
            Ok(open)
        };
        let Some(all) = self.open_jobs.slot(max, count).await? else { return Ok(Err(Full::All)) };
        let of_key = match of_key {
            Some((prefix, open_jobs)) => {
                // This job has its place among all already.
                let left = (max + 1).saturating_sub(self.open_jobs.count().total());
                let max = left.div_ceil(2).max(1);
                let count = sqlx::query_scalar(include_str!("open_jobs/count_of_key.sql"));
                let count = count.bind(i64::from(max)).bind(prefix.as_str());
                let Some(slot) = open_jobs.slot(max, async || count.fetch_one(conn).await).await? else {
                    return Ok(Err(Full::OfKey(max)));
                };
                Some(slot)
            }
            None => None,
        };
        Ok(Ok(Slots { all, of_key, current_turn: self.open_jobs.count().current_turn }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_count_is_still_used() {
        let open_jobs = OpenJobs::default();
        open_jobs.record_count(8, Instant::now() - COUNT_TTL * 2, 0);
        assert_eq!(open_jobs.reserve(10, COUNT_TTL).0, Reservation::CountAgain);
        assert!(open_jobs.reserve(10, Duration::MAX).1.is_some());
        assert!(open_jobs.reserve(8, Duration::MAX).1.is_none());
    }

    #[test]
    fn a_count_is_used_until_it_may_be_wrong() {
        let open_jobs = OpenJobs::default();
        let reserve = || open_jobs.count().reserve(10, COUNT_TTL);
        assert_eq!(reserve(), Reservation::CountAgain, "there is no count yet");
        *open_jobs.count() = OpenCount { counted: Some((8, Instant::now())), ..OpenCount::default() };
        let (first, second) =
            (open_jobs.reserve(10, COUNT_TTL).1.unwrap(), open_jobs.reserve(10, COUNT_TTL).1.unwrap());
        assert_eq!(reserve(), Reservation::CountAgain, "some of the eight may have ended");
        drop(first);
        let (after_drop, slot) = open_jobs.reserve(10, COUNT_TTL);
        assert_eq!(after_drop, Reservation::Reserved, "the dropped slot is free again");
        second.confirm();
        slot.unwrap().confirm();
        let OpenCount { made, making, .. } = *open_jobs.count();
        assert_eq!((made, making), (2, 0));
        assert_eq!(reserve(), Reservation::CountAgain);
        // Another submission created one more job during the count.
        open_jobs.count().made = 3;
        open_jobs.record_count(8, Instant::now(), 2);
        assert_eq!((reserve(), open_jobs.count().made), (Reservation::Reserved, 1));
        open_jobs.record_count(10, Instant::now(), 1);
        assert_eq!(reserve(), Reservation::Full);
        open_jobs.record_count(10, Instant::now() - COUNT_TTL * 2, 0);
        assert_eq!(reserve(), Reservation::CountAgain, "the count is old");
    }
}
