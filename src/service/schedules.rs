//! The schedules of the operator's file and their progress.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use crate::job::Job;
use crate::schedule::{Schedule, ScheduleState, ScheduledDatasets};
use crate::service::deadline::with_timeout;
use crate::service::{Error, Service};
use crate::store;
use cdc_manifest::JobId;

#[derive(Clone, Debug)]
pub struct ListedSchedule {
    pub schedule: Arc<Schedule>,
    pub state: ScheduleState,
    /// The slot of the next run; in the past if that slot has no job yet.
    pub next_at: Option<DateTime<Utc>>,
    /// The last job created for the schedule as it is now, if the job is kept.
    pub last_job: Option<Job>,
}

pub(super) struct ScheduleAge {
    pub(super) name: String,
    /// Time since the due slot.
    pub(super) overdue: TimeDelta,
    /// Time since the schedule last created a job.
    pub(super) last_run: Option<TimeDelta>,
}

impl Service {
    /// Lists the schedules that the caller may see, in the order of the file.
    pub async fn schedules(&self) -> Result<Vec<ListedSchedule>, Error> {
        let schedules = self.catalog.schedules();
        let (now, mut states) = with_timeout(self.store.schedule_states(schedules)).await?;
        let ids: Vec<JobId> = states.values().filter_map(|state| state.last_job).collect();
        let jobs = if ids.is_empty() { Vec::new() } else { with_timeout(self.store.jobs_by_id(&ids)).await? };
        let listed = |schedule: &Arc<Schedule>| {
            let state = states.remove(&schedule.name).unwrap_or_default();
            // The schedule may have belonged to another consumer, and may have had other datasets.
            let is_of_schedule = |job: &&Job| {
                let is_of_datasets = match &schedule.datasets {
                    ScheduledDatasets::One(name) => job.datasets.is_none() && job.first().dataset == *name,
                    ScheduledDatasets::Listed(_) | ScheduledDatasets::All => job.datasets.is_some(),
                };
                Some(job.id()) == state.last_job && job.consumer() == Some(&schedule.consumer) && is_of_datasets
            };
            let last_job = jobs.iter().find(is_of_schedule).cloned().and_then(|job| self.bounds.visible(job));
            let next_at = schedule.next_at(state.slot, now);
            ListedSchedule { schedule: Arc::clone(schedule), state, next_at, last_job }
        };
        Ok(schedules.iter().map(listed).collect())
    }

    pub(super) async fn schedule_ages(&self) -> Result<Vec<ScheduleAge>, store::Error> {
        let schedules = self.catalog.schedules();
        let (now, mut states) = self.store.schedule_states(schedules).await?;
        let age = |schedule: &Arc<Schedule>| {
            let state = states.remove(&schedule.name).unwrap_or_default();
            let last_run = state.last_run_at.map(|at| (now - at).max(TimeDelta::zero()));
            ScheduleAge { name: schedule.name.clone(), overdue: schedule.overdue(&state, now), last_run }
        };
        Ok(schedules.iter().map(age).collect())
    }
}
