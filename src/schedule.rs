//! Schedules: the service submits exports at the times that the operator's file defines.
//!
//! This module has plain values only. The caller passes the current time. This module must not know a clock, SQL or
//! files.

pub mod timing;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::job::{ConsumerId, ExportType, JobId, Request};
use crate::schedule::timing::Timing;
use pg_rows::encoding::Encoding;

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

    /// Returns the slot that is due now: the latest that passed, if it is later than `last`, the last used one. Missed
    /// earlier slots are skipped.
    ///
    /// After the clock was set back, a schedule waits for it, so that no slot is used twice. A start of the service
    /// ends a wait of more than an hour.
    pub fn due(&self, last: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.timing.latest(now).filter(|latest| last.is_none_or(|last| *latest > last))
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
    fn clock_set_back_repeats_no_slot() {
        let five = schedule(Timing::every("5m").unwrap());
        // A failover to a server with a slower clock.
        for (now, due) in [("09:59:58", None), ("09:00:00", None), ("10:05:00", Some(at("11-22T10:05:00")))] {
            assert_eq!(five.due(Some(at("11-22T10:00:00")), at(&format!("11-22T{now}"))), due);
        }
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
