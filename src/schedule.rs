//! Schedules: exports that the service submits by itself, at the times that the operator's file says.
//!
//! Plain values. The caller says what time it is: this module knows no clock, no SQL and no file.

pub mod timing;

use chrono::{DateTime, TimeDelta, Utc};

use crate::job::lane::Lane;
use crate::job::{ConsumerId, ExportType, JobId, Request};
use crate::schedule::timing::Timing;
use pg_rows::encoding::Encoding;

/// How far the last used slot may be ahead of the database's clock. Up to this distance the schedule waits for the
/// clock, so that no slot is used twice. Beyond it the clock counts as set back.
pub const WAITS_FOR_CLOCK: TimeDelta = TimeDelta::hours(1);

/// An export that is due at each of its slots, the times that the operator's file says.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Its name in lists, logs and metrics.
    pub name: String,
    /// The consumer of its exports.
    pub consumer: ConsumerId,
    /// The dataset of its exports.
    pub dataset: String,
    /// The type of its exports.
    pub export_type: ExportType,
    /// The format and compression of its files.
    pub encoding: Encoding,
    /// When its slots are.
    pub timing: Timing,
    /// Whether a full export follows an export that failed with `full_export_needed`.
    pub heals: bool,
    /// Whether a new schedule runs at once. Otherwise it waits for its next slot.
    pub runs_at_start: bool,
}

/// What is due for a schedule at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// This slot, the latest that passed. Earlier slots that were missed are left out.
    Slot(DateTime<Utc>),
    /// The clock was set back far behind the last used slot. From now on this slot counts as the last used one.
    ClockSetBack(DateTime<Utc>),
}

pg_rows::words! {
    /// Why a slot that is due has no job yet: the code of the problem that a client's request would get.
    Refusal, "a refusal" {
        /// There is no such table.
        TableMissing = "table_missing",
        /// The role may not read the table.
        PermissionDenied = "permission_denied",
        /// The dataset's changes are not captured: `cdc-export track` was not run.
        NotTracked = "not_tracked",
        /// The limit of open exports is reached.
        TooManyOpenJobs = "too_many_open_jobs",
    }
}

/// The state of a schedule, as the database has it.
#[derive(Clone, Debug, Default)]
pub struct ScheduleState {
    /// The last used slot. A job used it, or it was skipped. `None`: no slot was used.
    pub slot: Option<DateTime<Utc>>,
    /// The timing when that slot was used, as [`Timing`] displays it. `None`: the schedule is new.
    pub timing: Option<String>,
    /// The last job that was made for it. Retention may have removed the job since.
    pub last_job: Option<JobId>,
    /// When that job was made.
    pub last_run_at: Option<DateTime<Utc>>,
    /// Whether that job failed with `full_export_needed`.
    pub needs_full: bool,
    /// How many slots were skipped since then, because an export of the lane was still open.
    pub skipped: u64,
    /// When the last slot was skipped.
    pub skipped_at: Option<DateTime<Utc>>,
    /// Why the slot that is due has no job yet, and since when.
    pub refused: Option<(Refusal, DateTime<Utc>)>,
}

impl Schedule {
    /// The lane of its exports.
    pub fn lane(&self) -> Lane<'_> {
        Lane { consumer: &self.consumer, dataset: &self.dataset }
    }

    /// The request for one of its exports. It has no `after`, since the service doesn't know what the consumer loaded.
    pub fn request(&self, export_type: ExportType) -> Request {
        Request::new(Some(self.consumer.clone()), self.dataset.clone(), export_type, self.encoding)
    }

    /// Returns what is due now. `last` is the last used slot.
    pub fn due(&self, last: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Due {
        let Some(latest) = self.timing.latest(now) else { return Due::Nothing };
        let Some(last) = last else { return Due::Slot(latest) };
        if latest > last {
            return Due::Slot(latest);
        }
        // After a small step back the clock soon reaches the used slot again. After a large one, a schedule that waited
        // for the clock might not run for years.
        let is_next = self.timing.next(now).is_some_and(|next| last <= next);
        if is_next || last <= now + WAITS_FOR_CLOCK { Due::Nothing } else { Due::ClockSetBack(latest) }
    }

    /// Returns how long the slot that is due has been without a job. Zero if no slot is due.
    pub fn overdue(&self, state: &ScheduleState, now: DateTime<Utc>) -> TimeDelta {
        let since = match (state.slot, state.refused) {
            (Some(last), _) => self.timing.next(last),
            (None, refused) => refused.map(|(_, since)| since),
        };
        since.map_or(TimeDelta::zero(), |since| (now - since).max(TimeDelta::zero()))
    }

    /// Returns the next slot. A slot in the past is due and has no job yet.
    pub fn next_at(&self, last: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match last {
            Some(last) => self.timing.next(last),
            None if self.runs_at_start => self.timing.latest(now),
            None => self.timing.next(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_rows::encoding::{Compression, Format};

    fn schedule(timing: Timing) -> Schedule {
        Schedule {
            name: "nightly".to_owned(),
            consumer: "search".parse().unwrap(),
            dataset: "orders".to_owned(),
            export_type: ExportType::Delta,
            encoding: Encoding::new(Format::Csv, Compression::None).unwrap(),
            timing,
            heals: false,
            runs_at_start: true,
        }
    }

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-{text}Z").parse().unwrap()
    }

    #[test]
    fn slots_that_were_missed_collapse_into_the_latest() {
        let five = schedule(Timing::every("5m").unwrap());
        assert_eq!(five.due(Some(at("11-22T10:00:00")), at("11-22T10:04:59.9")), Due::Nothing);
        assert_eq!(five.due(Some(at("11-22T10:00:00")), at("11-22T10:05:00")), Due::Slot(at("11-22T10:05:00")));
        assert_eq!(five.due(Some(at("11-22T10:00:00")), at("11-22T10:52:00")), Due::Slot(at("11-22T10:50:00")));
        assert_eq!(five.due(Some(at("11-22T10:50:00")), at("11-22T10:52:00")), Due::Nothing);
        assert_eq!(five.due(None, at("11-22T10:52:00")), Due::Slot(at("11-22T10:50:00")));
    }

    #[test]
    fn a_clock_set_back_uses_no_slot_twice_and_stops_nothing_for_long() {
        let five = schedule(Timing::every("5m").unwrap());
        let nightly = schedule(Timing::cron("15 2 * * *", "Europe/Berlin").unwrap());
        // By a failover to a server whose clock is behind.
        assert_eq!(five.due(Some(at("11-22T10:00:00")), at("11-22T09:59:58")), Due::Nothing);
        assert_eq!(five.due(Some(at("11-22T10:00:00")), at("11-22T09:00:00")), Due::Nothing);
        assert_eq!(five.due(Some(at("11-22T10:00:00")), at("11-22T10:05:00")), Due::Slot(at("11-22T10:05:00")));
        // 02:15 in Berlin is 01:15 in UTC.
        assert_eq!(nightly.due(Some(at("11-22T01:15:00")), at("11-21T15:00:00")), Due::Nothing);
        assert_eq!(nightly.due(Some(at("11-22T01:15:00")), at("11-22T01:15:00")), Due::Nothing);
        assert_eq!(nightly.due(Some(at("11-22T01:15:00")), at("11-23T01:15:00")), Due::Slot(at("11-23T01:15:00")));
        // The clock was wrong before.
        let far = "2031-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(five.due(Some(far), at("11-22T10:01:00")), Due::ClockSetBack(at("11-22T10:00:00")));
        assert_eq!(nightly.due(Some(far), at("11-22T10:01:00")), Due::ClockSetBack(at("11-22T01:15:00")));
        assert_eq!(five.due(Some(at("11-22T10:00:00")), at("11-22T08:59:00")), Due::ClockSetBack(at("11-22T08:55:00")));
    }

    #[test]
    fn the_next_time_is_the_first_that_was_not_used() {
        let five = schedule(Timing::every("5m").unwrap());
        let now = at("11-22T10:52:00");
        assert_eq!(five.next_at(Some(at("11-22T10:50:00")), now), Some(at("11-22T10:55:00")));
        assert_eq!(five.next_at(Some(at("11-22T10:00:00")), now), Some(at("11-22T10:05:00")), "it is overdue");
        assert_eq!(five.next_at(None, now), Some(at("11-22T10:50:00")), "it runs at once");
        let later = Schedule { runs_at_start: false, ..five };
        assert_eq!(later.next_at(None, now), Some(at("11-22T10:55:00")));
    }
}
