//! Schedules: the exports that the service asks for by itself, and when one of them is due.
//!
//! Plain values. What is due is told for a time that the caller gives: knows no clock, no SQL and no file.

pub mod timing;

use chrono::{DateTime, TimeDelta, Utc};

use crate::job::lane::Lane;
use crate::job::selection::Selection;
use crate::job::{ConsumerId, ExportType, JobId, Request};
use crate::schedule::timing::Timing;
use pg_rows::encoding::Encoding;

/// How far the last slot that was used may lie ahead of the database's clock before the clock counts as set back. Up to there the
/// schedule waits for the clock, so that no slot is used twice.
pub const WAITS_FOR_CLOCK: TimeDelta = TimeDelta::hours(1);

/// An export that is asked for at times which the operator's file says: its slots.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Its name in lists, logs and metrics.
    pub name: String,
    /// Whose export it is.
    pub consumer: ConsumerId,
    /// Of which dataset.
    pub dataset: String,
    /// Which rows.
    pub export_type: ExportType,
    /// How they are written.
    pub encoding: Encoding,
    /// When.
    pub timing: Timing,
    /// Whether a full export follows one that failed because it needs a full one.
    pub heals: bool,
    /// Whether a schedule that nobody has seen before runs at once, in place of at its next slot.
    pub runs_at_start: bool,
}

/// What there is to do for a schedule at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// This slot, the latest of those that passed: earlier ones that were missed collapse into it.
    Slot(DateTime<Utc>),
    /// The clock was set back, far behind the last slot that was used: what counts as used now is all up to this one.
    ClockSetBack(DateTime<Utc>),
}

pg_rows::words! {
    /// Why a slot that is due has no job yet. A request of a client would be refused with the same code.
    Refusal, "a refusal" {
        /// There is no such table.
        TableMissing = "table_missing",
        /// The role may not read the table.
        PermissionDenied = "permission_denied",
        /// Nobody ran `cdc-export track` for the dataset.
        NotTracked = "not_tracked",
        /// As many exports are open as there may be.
        TooManyOpenJobs = "too_many_open_jobs",
    }
}

/// What the database knows of a schedule.
#[derive(Clone, Debug, Default)]
pub struct ScheduleState {
    /// The last slot that was used, by a job or because it was skipped; `None`: none was.
    pub slot: Option<DateTime<Utc>>,
    /// The timing of that time, as [`Timing`] writes it; `None`: nobody has seen the schedule before.
    pub timing: Option<String>,
    /// The last job that was made for it, which may be forgotten since.
    pub last_job: Option<JobId>,
    /// When that was.
    pub last_run_at: Option<DateTime<Utc>>,
    /// Whether that job failed, and a full export would let the next one succeed.
    pub needs_full: bool,
    /// How many slots were skipped since then, because an export of the lane was open still.
    pub skipped: u64,
    /// When the last of these was.
    pub skipped_at: Option<DateTime<Utc>>,
    /// Why the slot that is due has no job yet, and since when.
    pub refused: Option<(Refusal, DateTime<Utc>)>,
}

impl Schedule {
    /// The lane that its exports are of.
    pub fn lane(&self) -> Lane<'_> {
        Lane { consumer: &self.consumer, dataset: &self.dataset }
    }

    /// A request for an export of it. It says nothing of what the consumer has loaded: nobody asks for it who could know.
    pub fn request(&self, export_type: ExportType) -> Request {
        Request {
            consumer: Some(self.consumer.clone()),
            dataset: self.dataset.clone(),
            export_type,
            selection: Selection::default(),
            encoding: self.encoding,
            max_file_bytes: None,
            after: None,
            retry_of: None,
            key: None,
            trace: None,
        }
    }

    /// What there is to do, with `last` the last slot that was used.
    pub fn due(&self, last: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Due {
        let Some(latest) = self.timing.latest(now) else { return Due::Nothing };
        let Some(last) = last else { return Due::Slot(latest) };
        if latest > last {
            return Due::Slot(latest);
        }
        // After a small step back the clock comes to the slot again, which was used. After a large one a schedule that waited for the
        // clock might stand still for years: once the clock was wrong by as much.
        let is_next = self.timing.next(now).is_some_and(|next| last <= next);
        if is_next || last <= now + WAITS_FOR_CLOCK { Due::Nothing } else { Due::ClockSetBack(latest) }
    }

    /// For how long the slot that is due has had no job; nothing where none is due.
    pub fn overdue(&self, state: &ScheduleState, now: DateTime<Utc>) -> TimeDelta {
        let since = match (state.slot, state.refused) {
            (Some(last), _) => self.timing.next(last),
            (None, refused) => refused.map(|(_, since)| since),
        };
        since.map_or(TimeDelta::zero(), |since| (now - since).max(TimeDelta::zero()))
    }

    /// The slot that it next runs at. A time that has passed: the slot is due, and nothing has run it yet.
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
