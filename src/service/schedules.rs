//! The schedules of the operator's file, and how far they have come.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use crate::job::{ConsumerId, Job, JobId};
use crate::schedule::{Schedule, ScheduleState};
use crate::service::deadline::with_timeout;
use crate::service::{Error, Service};
use crate::store;

/// A schedule, as a list shows it.
#[derive(Clone, Debug)]
pub struct ListedSchedule {
    /// What the operator's file says.
    pub schedule: Arc<Schedule>,
    /// What the database knows.
    pub state: ScheduleState,
    /// The slot that it next runs at; in the past, if that slot has no job yet.
    pub next_at: Option<DateTime<Utc>>,
    /// The last job that was made for it and its lane, if that is kept.
    pub last_job: Option<Job>,
}

/// How late a schedule is.
pub(super) struct ScheduleAge {
    pub(super) name: String,
    /// Since the slot that is due.
    pub(super) overdue: TimeDelta,
    /// Since it last made a job.
    pub(super) last_run: Option<TimeDelta>,
}

impl Service {
    /// The schedules in the order of the file; of the consumers `among`, where these are given.
    pub async fn schedules(&self, among: Option<&[ConsumerId]>) -> Result<Vec<ListedSchedule>, Error> {
        let is_visible = |schedule: &&Arc<Schedule>| among.is_none_or(|own| own.contains(&schedule.consumer));
        let schedules: Vec<_> = self.catalog.schedules().iter().filter(is_visible).collect();
        if schedules.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = schedules.iter().map(|schedule| schedule.name.as_str()).collect();
        let (now, mut states) = with_timeout(self.store.schedule_states(&names)).await?;
        let ids: Vec<JobId> = states.values().filter_map(|state| state.last_job).collect();
        let jobs = if ids.is_empty() { Vec::new() } else { with_timeout(self.store.jobs_by_id(&ids)).await? };
        let listed = |schedule: &Arc<Schedule>| {
            let state = states.remove(&schedule.name).unwrap_or_default();
            // A schedule may have been another consumer's before.
            let is_its = |job: &&Job| {
                let lane = (job.consumer.as_ref(), job.dataset.as_str());
                Some(job.id) == state.last_job && lane == (Some(&schedule.consumer), schedule.dataset.as_str())
            };
            let last_job = jobs.iter().find(is_its).cloned();
            let next_at = schedule.next_at(state.slot, now);
            ListedSchedule { schedule: Arc::clone(schedule), state, next_at, last_job }
        };
        Ok(schedules.into_iter().map(listed).collect())
    }

    /// How late the schedules are.
    pub(super) async fn schedule_ages(&self) -> Result<Vec<ScheduleAge>, store::Error> {
        let schedules = self.catalog.schedules();
        if schedules.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = schedules.iter().map(|schedule| schedule.name.as_str()).collect();
        let (now, mut states) = self.store.schedule_states(&names).await?;
        let age = |schedule: &Arc<Schedule>| {
            let state = states.remove(&schedule.name).unwrap_or_default();
            let last_run = state.last_run_at.map(|at| (now - at).max(TimeDelta::zero()));
            ScheduleAge { name: schedule.name.clone(), overdue: schedule.overdue(&state, now), last_run }
        };
        Ok(schedules.iter().map(age).collect())
    }
}
