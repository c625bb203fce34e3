//! Schedules: the service submits exports at the times that the operator's file defines.
//!
//! This module has plain values only. The caller passes the current time. This module must not know a clock, SQL or
//! files.

pub mod timing;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::job::Request;
use crate::schedule::timing::Timing;
use cdc_manifest::{ConsumerId, JobId};
use pg_rows::encoding::Encoding;
use pg_rows::export_type::ExportType;

/// The limit for the last used slot to be ahead of the database's clock. Up to this limit the schedule waits for the
/// clock, so that no slot is used twice. Beyond it the clock counts as set back.
pub const WAITS_FOR_CLOCK: TimeDelta = TimeDelta::hours(1);

/// A schedule. An export is due at each of its slots, which are the times that the operator's file defines.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub name: String,
    pub consumer: ConsumerId,
    pub datasets: ScheduledDatasets,
    pub export_type: ExportType,
    pub encoding: Encoding,
    pub timing: Timing,
    /// True if a full export is made where only one goes on.
    pub heals: bool,
    /// True if a new schedule runs at once. A schedule with `false` waits for its next slot.
    pub runs_at_start: bool,
    /// True to make no file if there is nothing to export. `None` uses the dataset's choice.
    pub skip_empty: Option<bool>,
    /// The age of a waiting change up to which its consumer is fresh. `None` uses the dataset's.
    pub fresh_within: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScheduledDatasets {
    One(String),
    /// Several datasets, in the order of their names.
    Listed(Vec<String>),
    /// All datasets that are ready.
    All,
}

impl ScheduledDatasets {
    /// Returns the names of the datasets. Returns none if all are meant.
    pub fn names(&self) -> &[String] {
        match self {
            ScheduledDatasets::One(name) => std::slice::from_ref(name),
            ScheduledDatasets::Listed(names) => names,
            ScheduledDatasets::All => &[],
        }
    }

    /// Returns true if this dataset is one of them, once it is ready.
    pub fn include(&self, dataset: &str) -> bool {
        *self == ScheduledDatasets::All || self.names().iter().any(|name| name == dataset)
    }
}

/// The action that is due for a schedule at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Nothing,
    /// This slot is due. It is the latest that passed. Missed earlier slots are skipped.
    Slot(DateTime<Utc>),
    /// The clock was set back far before the last used slot. From now on this slot counts as the last used one.
    ClockSetBack(DateTime<Utc>),
}

pg_rows::words! {
    /// The reason why a due slot has no job yet. It is the problem code that a client's request would get.
    Refusal, "a refusal" {
        /// The catalog has no such dataset. A pattern may make it.
        NoDataset = "no_dataset",
        /// The table does not exist.
        TableMissing = "table_missing",
        /// The database role may not read the table.
        PermissionDenied = "permission_denied",
        /// The changes of the dataset are not captured, because nobody ran `cdc-export track`.
        NotTracked = "not_tracked",
        /// The dataset has no capture, and the schedule asks neither for full exports nor for `heal`.
        FullOnly = "full_only",
        /// The limit of open exports is reached.
        TooManyOpenJobs = "too_many_open_jobs",
        /// No dataset is ready, and the schedule is for all that are.
        NothingReady = "nothing_ready",
        /// More datasets are ready than a job may have.
        TooManyDatasets = "too_many_datasets",
    }
}

#[derive(Clone, Debug, Default)]
pub struct ScheduleState {
    /// The last used slot: a job was submitted for it, or it was skipped. `None` if no slot was used.
    pub slot: Option<DateTime<Utc>>,
    /// The timing when that slot was used, as [`Timing`] displays it. `None` if the schedule is new.
    pub timing: Option<String>,
    /// The last job that was submitted for the schedule. Retention may have removed the job since.
    pub last_job: Option<JobId>,
    pub last_run_at: Option<DateTime<Utc>>,
    /// The number of slots that were skipped since that job, because an export of the lane was still open.
    pub skipped: u64,
    pub skipped_at: Option<DateTime<Utc>>,
    /// The reason why the due slot has no job yet, and the time of the first refusal.
    pub refused: Option<(Refusal, DateTime<Utc>)>,
}

impl Schedule {
    /// Builds the request for an export. It has no `after`, because the service does not know the consumer's last load.
    pub fn request(&self, dataset: &str, export_type: ExportType) -> Request {
        let request = Request::new(Some(self.consumer.clone()), dataset.to_owned(), export_type, self.encoding);
        Request { skip_empty: self.skip_empty, heals: self.heals, ..request }
    }

    /// Returns the action that is due now. `last` is the last used slot.
    pub fn due(&self, last: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Due {
        let Some(latest) = self.timing.latest(now) else { return Due::Nothing };
        let Some(last) = last else { return Due::Slot(latest) };
        if latest > last {
            return Due::Slot(latest);
        }
        // After a small step back, the clock soon reaches the used slot again. After a large one, a schedule that waits
        // for the clock might not run for years.
        let is_next = self.timing.next(now).is_some_and(|next| last <= next);
        if is_next || last <= now + WAITS_FOR_CLOCK { Due::Nothing } else { Due::ClockSetBack(latest) }
    }

    /// Returns the time for which the due slot has had no job. Returns zero if no slot is due.
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
    use pg_rows::encoding::Format;

    fn schedule(timing: Timing) -> Schedule {
        Schedule {
            name: "nightly".to_owned(),
            consumer: "search".parse().unwrap(),
            datasets: ScheduledDatasets::One("orders".to_owned()),
            export_type: ExportType::Delta,
            encoding: Encoding::new(Format::Csv, None).unwrap(),
            timing,
            heals: false,
            runs_at_start: true,
            skip_empty: None,
            fresh_within: None,
        }
    }

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-{text}Z").parse().unwrap()
    }

    #[test]
    fn clock_set_back_neither_repeats_a_slot_nor_stops_the_schedule() {
        let five = schedule(Timing::every("5m").unwrap());
        let nightly = schedule(Timing::cron("15 2 * * *", chrono_tz::Tz::Europe__Berlin).unwrap());
        // A failover to a server with a slower clock.
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
    fn next_slot_is_the_first_unused_one() {
        let five = schedule(Timing::every("5m").unwrap());
        let now = at("11-22T10:52:00");
        assert_eq!(five.next_at(Some(at("11-22T10:50:00")), now), Some(at("11-22T10:55:00")));
        assert_eq!(five.next_at(Some(at("11-22T10:00:00")), now), Some(at("11-22T10:05:00")), "it is overdue");
        assert_eq!(five.next_at(None, now), Some(at("11-22T10:50:00")), "it runs at once");
        let later = Schedule { runs_at_start: false, ..five };
        assert_eq!(later.next_at(None, now), Some(at("11-22T10:55:00")));
    }
}
