//! Limits the number of open jobs.
//!
//! Counting them for each submission would be slow: while an export runs for hours, the index of open jobs keeps an
//! entry for each job that ended since. One row with the number would make all submissions wait for its lock.
//!
//! So each process counts the open jobs about once a second, and adds the jobs that it creates in between. Each process
//! alone respects the limit. Several processes together may exceed it by the jobs that the others create in that
//! second.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgConnection;

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
}

/// The outcome of an attempt to reserve a slot for one more open job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reservation {
    /// A slot is reserved.
    Reserved,
    /// The number of open jobs has reached the limit.
    Full,
    /// The count is too old, or some of the counted jobs may have ended.
    CountAgain,
}

impl OpenCount {
    /// Reserves a slot if fewer than `max` jobs are open, by a count that is not older than `age`.
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

/// The right to create one more open job. Dropping the slot gives up the right.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    open_jobs: &'a OpenJobs,
    is_used: bool,
}

impl Slot<'_> {
    /// Records that the job is created. Call it after the commit.
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
    /// Locks the count.
    fn count(&self) -> MutexGuard<'_, OpenCount> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves a count that began at `at`. The count contains the `made` jobs that this process had created by then.
    fn record_count(&self, counted: u32, at: Instant, made: u32) {
        let mut open = self.count();
        open.counted = Some((counted, at));
        open.made -= made;
    }

    /// Reserves a slot as in [`OpenCount::reserve`].
    fn reserve(&self, max: u32, age: Duration) -> (Reservation, Option<Slot<'_>>) {
        let reservation = self.count().reserve(max, age);
        (reservation, (reservation == Reservation::Reserved).then(|| Slot { open_jobs: self, is_used: false }))
    }
}

impl Store {
    /// Reserves a slot for one more job. Returns `None` if `max` jobs are open.
    pub(super) async fn slot(&self, conn: &mut PgConnection, max: u32) -> Result<Option<Slot<'_>>, Error> {
        let (reservation, slot) = self.open_jobs.reserve(max, COUNT_TTL);
        if reservation != Reservation::CountAgain {
            return Ok(slot);
        }
        let _counting = self.open_jobs.counting.lock().await;
        // Another submission may have counted in the meantime.
        let (reservation, slot) = self.open_jobs.reserve(max, COUNT_TTL);
        if reservation != Reservation::CountAgain {
            return Ok(slot);
        }
        // At worst, jobs that are created from here on are counted twice.
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
        // Accepts this count at any age. Over a slow connection it may be old by now, which does not mean that the
        // limit is reached.
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
