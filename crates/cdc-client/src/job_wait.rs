//! Shows the progress of a job that is waited for, and the export that holds it up.

use tokio::time::Instant;

use crate::answer::CallError;
use crate::api::Api;
use crate::job_view::{JobOfDatasets, JobProgress};
use crate::observer::quiet_wait;
use cdc_manifest::JobId;

impl Api {
    /// Waits until a job whose request had `datasets` has ended.
    pub async fn ended_job(&self, id: JobId) -> Result<JobOfDatasets, CallError> {
        let mut wait = JobWait::begin(self, id);
        loop {
            let job = self.poll_datasets(id).await?;
            if job.job.has_ended() {
                return Ok(job);
            }
            wait.show(&job.progress()).await;
        }
    }
}

/// A job that is waited for. The progress is shown until this value is dropped.
pub(crate) struct JobWait<'a> {
    api: &'a Api,
    begun: Instant,
    is_told: bool,
}

impl JobWait<'_> {
    pub(crate) fn begin(api: &Api, id: JobId) -> JobWait<'_> {
        api.observer().begin_job(id);
        JobWait { api, begun: Instant::now(), is_told: false }
    }

    /// Shows the progress. If the job waits for long, names a committed export whose files don't get their names: no
    /// other export of its lane begins before.
    pub(crate) async fn show(&mut self, progress: &JobProgress<'_>) {
        self.api.observer().job(progress);
        let may_be_held_up = matches!(progress.phase, "pending" | "waiting" | "publishing");
        if self.is_told || !may_be_held_up || self.begun.elapsed() < quiet_wait() {
            return;
        }
        let consumer = progress.job.consumer_id.as_deref().unwrap_or_default();
        // If the list can't be read, the next poll of the job says why.
        let Ok(Some(unpublished)) = self.api.unpublished_job(consumer).await else { return };
        self.is_told = true;
        self.api.observer().notice(&format!(
            "waiting for the job {unpublished}: it is committed, and its files don't get their names. Bring the service's \
             output folder or bucket back. If it is lost, DELETE /exports/{unpublished} gives the job up"
        ));
    }
}

impl Drop for JobWait<'_> {
    fn drop(&mut self) {
        self.api.observer().end();
    }
}
