//! Decides if the database's clock is believed, by which things grow too old.
//!
//! Somebody can set the database's clock to any time. A process also has a monotonic clock, which nobody can set, and
//! which knows no date. So the database's clock is believed once it has agreed with the monotonic one for a while.
//!
//! Must not know what is removed by age.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

/// The time for which the clocks must have agreed.
const BELIEVED_AFTER: Duration = Duration::from_mins(30);

/// The difference within that time up to which clocks agree. Synchronized clocks are corrected by less.
const TOLERANCE: TimeDelta = TimeDelta::seconds(10);

/// One reading of the database's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClockReading {
    /// The database's time, which was read between the two others.
    pub(super) database: DateTime<Utc>,
    pub(super) sent: Instant,
    pub(super) received: Instant,
}

#[derive(Debug)]
pub(super) struct ClockTrust {
    believed_after: Duration,
    agreement: Mutex<Option<Agreement>>,
}

#[derive(Clone, Copy, Debug)]
struct Agreement {
    /// The reading with which later ones are compared. It is replaced each [`BELIEVED_AFTER`], so that the drift of a
    /// sound clock does not add up to a jump.
    first: ClockReading,
    last: ClockReading,
    is_believed: bool,
}

impl Default for ClockTrust {
    fn default() -> ClockTrust {
        let believed_after = failpoint::time("maintenance.clock", BELIEVED_AFTER);
        ClockTrust { believed_after, agreement: Mutex::default() }
    }
}

impl ClockTrust {
    /// Compares a reading with the earlier ones. Logs when removal by age stops and begins.
    pub(super) fn compare(&self, reading: ClockReading) {
        let mut agreement = self.agreement.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = Agreement { first: reading, last: reading, is_believed: false };
        let known = agreement.unwrap_or(begins);
        let passed = reading.received.duration_since(known.first.received);
        let jump = reading.database - known.first.database - delta(passed);
        // The database read its clock at any time of a round trip.
        let round_trips = delta(reading.received - reading.sent) + delta(known.first.received - known.first.sent);
        *agreement = Some(if jump.abs() > TOLERANCE + round_trips {
            tracing::warn!(
                event = "clock_jumped",
                seconds = jump.num_seconds(),
                "the database's clock moved by so many seconds more than the time that this process measured: nothing is removed \
                 by its age until both have agreed for 30 minutes"
            );
            begins
        } else if passed < self.believed_after {
            Agreement { last: reading, ..known }
        } else {
            if !known.is_believed {
                tracing::info!(
                    event = "removal_by_age_begins",
                    "the database's clock has agreed for 30 minutes with the time that this process measured: files, jobs and \
                     positions that are too old are removed from now on"
                );
            }
            Agreement { is_believed: true, ..begins }
        });
    }

    /// Returns the present time, by which things may be too old. `None`: the database's clock is not believed.
    ///
    /// The monotonic clock counts it from the last reading. So a jump that no reading has shown yet makes nothing
    /// older.
    pub(super) fn now(&self) -> Option<DateTime<Utc>> {
        let agreement = *self.agreement.lock().unwrap_or_else(PoisonError::into_inner);
        let Agreement { last, .. } = agreement.filter(|agreement| agreement.is_believed)?;
        Some(last.database + delta(last.received.elapsed()))
    }
}

/// Returns a measured time as one that moments differ by. A process measures fewer than 200 million years.
fn delta(measured: Duration) -> TimeDelta {
    TimeDelta::from_std(measured).unwrap_or(TimeDelta::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clocks of a test, which it sets.
    struct Clocks {
        monotonic: Instant,
        database: DateTime<Utc>,
    }

    impl Clocks {
        fn new() -> Clocks {
            Clocks { monotonic: Instant::now(), database: "2026-03-01T00:00:00Z".parse().unwrap() }
        }

        /// Lets time pass by both clocks, and reads the database's clock, which is `ahead`.
        fn pass(&mut self, time: Duration, ahead: TimeDelta) -> ClockReading {
            self.monotonic += time;
            self.database += time;
            ClockReading { database: self.database + ahead, sent: self.monotonic, received: self.monotonic }
        }
    }

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_mins(1);

    fn believes_after(trust: &ClockTrust, reading: ClockReading) -> bool {
        trust.compare(reading);
        trust.now().is_some()
    }

    #[test]
    fn clocks_are_believed_after_they_agreed_for_half_an_hour() {
        let (trust, mut clocks) = (ClockTrust::default(), Clocks::new());
        for minute in 0..30 {
            assert!(!believes_after(&trust, clocks.pass(MINUTE, TimeDelta::zero())), "{minute}");
        }
        assert!(believes_after(&trust, clocks.pass(MINUTE, TimeDelta::zero())));
    }

    #[test]
    fn each_jump_of_a_clock_begins_the_half_hour_anew() {
        let (trust, mut clocks) = (ClockTrust::default(), Clocks::new());
        for ahead in [TimeDelta::zero(), TimeDelta::days(20), TimeDelta::zero(), -TimeDelta::minutes(1)] {
            assert!(!believes_after(&trust, clocks.pass(SECOND, ahead)), "{ahead}");
            assert!(!believes_after(&trust, clocks.pass(29 * MINUTE, ahead)), "{ahead}");
            assert!(believes_after(&trust, clocks.pass(MINUTE, ahead)), "{ahead}");
        }
    }

    #[test]
    fn the_present_is_counted_from_the_last_reading_that_agreed() {
        let trust = ClockTrust { believed_after: Duration::ZERO, ..ClockTrust::default() };
        let reading = Clocks::new().pass(Duration::ZERO, TimeDelta::zero());
        assert!(believes_after(&trust, reading));
        let late = trust.now().unwrap() - reading.database;
        assert!(late >= TimeDelta::zero() && late < TimeDelta::minutes(1), "{late}");
    }

    /// A clock that gains 20 seconds a day, and is corrected by a second now and then.
    #[test]
    fn drift_and_corrections_are_no_jumps() {
        let (trust, mut clocks) = (ClockTrust::default(), Clocks::new());
        trust.compare(clocks.pass(SECOND, TimeDelta::zero()));
        trust.compare(clocks.pass(30 * MINUTE, TimeDelta::zero()));
        for minute in 0..3 * 24 * 60_i32 {
            let ahead = TimeDelta::milliseconds((minute * 14).into()) - TimeDelta::seconds((minute / 100).into());
            assert!(believes_after(&trust, clocks.pass(MINUTE, ahead)), "{minute}");
        }
    }

    #[test]
    fn a_long_round_trip_is_no_jump() {
        let (trust, mut clocks) = (ClockTrust::default(), Clocks::new());
        trust.compare(clocks.pass(SECOND, TimeDelta::zero()));
        trust.compare(clocks.pass(30 * MINUTE, TimeDelta::zero()));
        // The database read its clock at the beginning of the round trip, which took a minute.
        let reading = clocks.pass(MINUTE, -TimeDelta::minutes(1));
        assert!(believes_after(&trust, ClockReading { sent: reading.received - MINUTE, ..reading }));
    }
}
