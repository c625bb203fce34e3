//! A bound on open jobs: how many there are in all, and whether one more may be made.
//!
//! They are not counted for each submission: beside an export that runs for hours, the index of open jobs keeps an
//! entry for each job that has ended since, and all submissions would wait for one row that had the number. A process
//! counts the open jobs once in a while, and from then on adds the jobs that it makes. So each process keeps the bound;
//! several together may exceed it by the jobs that the others make in that time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgConnection;

use crate::store::{Error, Store};

/// The time for which a count is used.
const COUNT_TTL: Duration = Duration::from_secs(1);

/// This process's count of open jobs.
#[derive(Debug, Default)]
pub(super) struct OpenJobs {
    open: Mutex<OpenCount>,
    /// Held by the submission that counts; others wait for its count.
    counting: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct OpenCount {
    /// The count, and the time at which it was made.
    counted: Option<(u32, Instant)>,
    /// Jobs that this process made since then.
    made: u32,
    /// Jobs that this process is making.
    making: u32,
}

/// The outcome of an attempt to reserve a place among the open jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reservation {
    /// A place is reserved.
    Reserved,
    /// There are as many open jobs as there may be.
    Full,
    /// The count is old, or jobs may have ended since.
    CountAgain,
}

impl OpenCount {
    /// Takes a place among `max`, by a count that is not older than `age`.
    fn reserve(&mut self, max: u32, age: Duration) -> Reservation {
        match self.counted {
            Some((counted, at)) if at.elapsed() <= age => {
                if counted >= max {
                    return Reservation::Full;
                }
                if counted.saturating_add(self.made).saturating_add(self.making) >= max {
                    return Reservation::CountAgain;
                }
                self.making += 1;
                Reservation::Reserved
            }
            _ => Reservation::CountAgain,
        }
    }
}

/// The right to make one more open job, until it is used or given up.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    open_jobs: &'a OpenJobs,
    is_used: bool,
}

impl Slot<'_> {
    /// The job is made.
    pub(super) fn confirm(mut self) {
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

    /// Takes a count that began at `at`. The `made` jobs that this process had made by then are in it.
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

impl Store {
    /// The right to make one more job among `max` open ones; `None`: there are as many.
    pub(super) async fn slot(&self, conn: &mut PgConnection, max: u32) -> Result<Option<Slot<'_>>, Error> {
        let (reservation, slot) = self.open_jobs.reserve(max, COUNT_TTL);
        if reservation != Reservation::CountAgain {
            return Ok(slot);
        }
        let _turn = self.open_jobs.counting.lock().await;
        // Another submission may just have counted.
        let (reservation, slot) = self.open_jobs.reserve(max, COUNT_TTL);
        if reservation != Reservation::CountAgain {
            return Ok(slot);
        }
        // What is made from here on is counted twice at worst.
        let (at, made) = (Instant::now(), self.open_jobs.count().made);
        let counted: i64 = sqlx::query_scalar(
            "-- store.open_jobs.count
             select count(*) from (select from exports where status in ('pending', 'processing') limit $1) open",
        )
        .bind(i64::from(max))
        .fetch_one(conn)
        .await?;
        let counted = u32::try_from(counted).unwrap_or(u32::MAX);
        self.open_jobs.record_count(counted, at, made);
        // However long the count took: over a slow line it may be old by now, and the queue isn't full for that.
        Ok(self.open_jobs.reserve(max, Duration::MAX).1)
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
        assert_eq!(reserve(), Reservation::CountAgain, "nobody has counted");
        *open_jobs.count() = OpenCount { counted: Some((8, Instant::now())), ..OpenCount::default() };
        let (first, second) =
            (open_jobs.reserve(10, COUNT_TTL).1.unwrap(), open_jobs.reserve(10, COUNT_TTL).1.unwrap());
        assert_eq!(reserve(), Reservation::CountAgain, "some of the eight may have ended");
        drop(first);
        let (after_drop, slot) = open_jobs.reserve(10, COUNT_TTL);
        assert_eq!(after_drop, Reservation::Reserved, "it was given up");
        second.confirm();
        slot.unwrap().confirm();
        let OpenCount { made, making, .. } = *open_jobs.count();
        assert_eq!((made, making), (2, 0));
        assert_eq!(reserve(), Reservation::CountAgain);
        // One more was made while somebody counted.
        open_jobs.count().made = 3;
        open_jobs.record_count(8, Instant::now(), 2);
        assert_eq!((reserve(), open_jobs.count().made), (Reservation::Reserved, 1));
        open_jobs.record_count(10, Instant::now(), 1);
        assert_eq!(reserve(), Reservation::Full);
        open_jobs.record_count(10, Instant::now() - COUNT_TTL * 2, 0);
        assert_eq!(reserve(), Reservation::CountAgain, "it is old");
    }
}
