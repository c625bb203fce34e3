//! Operations on jobs: submit, get, list, cancel, acknowledge and follow.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::time::Instant;

use crate::audit::Action;
use crate::job::activity::LastDay;
use crate::job::datasets::DatasetsRequest;
use crate::job::{Export, Filter, IdempotencyKey, Job, JobPage, Request, Status};
use crate::service::deadline::{on_table, with_timeout};
use crate::service::followers::{Follower, Poll, PollOutcome, Subscriber};
use crate::service::{DIAGNOSIS_TIMEOUT, Error, Service};
use crate::store::{
    self,
    jobs::{Cancelled, SubmitOutcome},
    lanes::OutOfStep,
    tracked::{Obstacle, TableCheck},
};
use crate::telemetry::job_event;
use crate::trace::TraceParent;
use cdc_dataset::Dataset;
use cdc_destination::Destination;
use cdc_manifest::{ConsumerId, JobId, Lane};

/// The result of a request to cancel a job.
pub enum Cancellation {
    /// The job is cancelled, or its worker was asked to stop.
    Asked(Job),
    /// An earlier request cancelled the job.
    Already(Job),
}

impl Service {
    /// Accepts a job of one export. The job is durable and survives a crash of this process.
    ///
    /// A repeated idempotency key returns the job created by the first request.
    ///
    /// # Errors
    /// If the dataset does not exist, or its table is missing, unreadable, untracked for a consumer or unsuitable for
    /// the selection. If the key was used for another request, if too many jobs are open, or if the destination is
    /// missing.
    pub async fn submit(&self, request: &Request) -> Result<Job, Error> {
        let dataset = self.dataset(&request.dataset)?;
        if let Err(bad) = self.check(dataset, request).await {
            // The same request was valid before. Its repetition succeeds regardless of the table's current state.
            return self.sent_before(request, None).await?.ok_or(bad);
        }
        self.submit_checked(slice::from_ref(request), None).await
    }

    /// Returns the job of an earlier request with the same idempotency key, if that request asked for the same.
    pub(super) async fn sent_before(
        &self,
        request: &Request,
        datasets: Option<&DatasetsRequest>,
    ) -> Result<Option<Job>, Error> {
        let before = with_timeout(self.store.sent_before(request)).await?;
        let before = before.filter(|job| request.asks_for(datasets, job) && self.bounds.allow_all_of(job));
        Ok(before.and_then(|job| self.bounds.visible(job)))
    }

    /// Accepts a job whose tables were checked, with an export for each request.
    pub(super) async fn submit_checked(
        &self,
        requests: &[Request],
        datasets: Option<&DatasetsRequest>,
    ) -> Result<Job, Error> {
        let destination = match self.destination.id().await.map_err(Error::from) {
            Err(missing @ Error::OutputMissing(_)) => return Err(missing),
            // Another failure may pass before a worker begins.
            found => found.ok(),
        };
        let submitted = with_timeout(self.store.submit(requests, datasets, destination, self.terms)).await;
        match self.diagnose_timeout(submitted).await? {
            SubmitOutcome::Accepted(job) => {
                let action = if job.first().retry_of.is_some() { Action::Retry } else { Action::Export };
                job.exports.iter().for_each(|export| self.origin.log_job(action, export));
                log_event("export_submitted", &job);
                self.visible(job)
            }
            SubmitOutcome::Before(job) if self.bounds.allow_all_of(&job) => self.visible(job),
            // Another key has sent the same, and may export more.
            SubmitOutcome::Before(_) => Err(Error::KeyTaken(None)),
            SubmitOutcome::KeyTaken(job) => Err(Error::KeyTaken(self.bounds.visible(*job).map(|job| job.id()))),
            SubmitOutcome::OutOfStep(dataset, OutOfStep::NewerExports(exports)) => {
                Err(Error::OutOfStep(datasets.map(|_| dataset), self.visible_exports(exports)))
            }
            SubmitOutcome::OutOfStep(_, OutOfStep::Unknown) => Err(Error::Restored),
            SubmitOutcome::TooManyOpen(open) => Err(Error::TooManyOpen(open)),
            SubmitOutcome::QueueFull(open) => Err(Error::QueueFull(open)),
            SubmitOutcome::KeyFull(open) => Err(Error::KeyFull(open)),
        }
    }

    /// Accepts a job with the parameters of a failed or cancelled one.
    ///
    /// # Errors
    /// If the job does not exist or has another status, or if the caller may not see all of it; and as
    /// [`submit`](Service::submit).
    pub async fn retry(
        &self,
        id: JobId,
        key: Option<IdempotencyKey>,
        trace: Option<TraceParent>,
    ) -> Result<Job, Error> {
        let job = self.whole_job(id).await?;
        let status = job.status();
        if !matches!(status, Status::Failed | Status::Cancelled) {
            return Err(Error::NotToRetry(status));
        }
        let again =
            |export: &Export| Request { retry_of: Some(id), key: key.clone(), trace, ..Request::from_export(export) };
        let Some(asked) = &job.datasets else { return self.submit(&again(job.first())).await };
        let request = |name: &String| {
            let request = match job.exports.iter().find(|export| export.dataset == *name) {
                Some(export) => again(export),
                // Retention has removed the export.
                None => Request { dataset: name.clone(), after: None, ..again(job.first()) },
            };
            let export_type = self.catalog.healed_type(name, asked.export_type, request.heals);
            Request { export_type, ..request }
        };
        let requests: Vec<_> = asked.datasets.iter().map(request).collect();
        if let Err(bad) = self.check_all(&requests).await {
            return self.sent_before(&requests[0], Some(asked)).await?.ok_or(bad);
        }
        self.submit_checked(&requests, Some(asked)).await
    }

    /// Checks that the dataset's table supports the request.
    pub(super) async fn check(&self, dataset: &Arc<Dataset>, request: &Request) -> Result<(), Error> {
        if !dataset.allows(request.export_type) {
            return Err(Error::FullOnly(dataset.name.clone()));
        }
        let table = with_timeout(self.store.check_table(dataset)).await;
        // Only an unreadable table needs the second query, because that query competes for connections with the
        // counting of changes.
        if matches!(&table, Ok(TableCheck { is_readable: false, .. }) | Err(Error::DatabaseDenied(_)))
            && let Some(fault) = on_table(self.source.unreadable(dataset)).await?
        {
            return Err(Error::NotReadable(cdc_capture::Error::NotReadable(fault)));
        }
        let table = table?;
        match table.tracking.obstacle(dataset, request.consumer.as_ref()) {
            Some(Obstacle::NoTable) => {
                return Err(Error::NoTable { dataset: dataset.name.clone(), table: dataset.table.to_string() });
            }
            Some(Obstacle::NotTracked) => {
                let track = || cdc_capture::Error::NotTracked(dataset.name.clone()).to_string();
                return Err(Error::NotTracked(table.uncapturable.unwrap_or_else(track)));
            }
            None => {}
        }
        if request.selection.is_all() {
            return Ok(());
        }
        match on_table(self.source.check(dataset, &request.selection)).await? {
            Some(bad) if bad.is_masked => Err(Error::ColumnMasked(bad)),
            Some(bad) => Err(Error::BadSelection(bad)),
            None => Ok(()),
        }
    }

    /// Returns a job as the caller sees it: as if it had only the datasets that the caller may see.
    ///
    /// # Errors
    /// If there is no job with this id, or if the caller may not see any of its datasets.
    pub async fn job(&self, id: JobId) -> Result<Job, Error> {
        let job = with_timeout(self.store.job(id)).await?.ok_or(Error::NoJob)?;
        let job = self.visible(job)?;
        self.origin.learn_names(&job);
        Ok(job)
    }

    /// Returns a job for a change of all its exports.
    ///
    /// # Errors
    /// If there is no job with this id, or if the caller may not see all of its datasets.
    async fn whole_job(&self, id: JobId) -> Result<Job, Error> {
        let job = with_timeout(self.store.job(id)).await?.ok_or(Error::NoJob)?;
        if !self.bounds.allow_all_of(&job) {
            return Err(Error::NoJob);
        }
        self.origin.learn_names(&job);
        Ok(job)
    }

    /// Returns an export of a job: that of the dataset, or the only one that the caller may see.
    ///
    /// # Errors
    /// As [`job`](Service::job). If the job has no such export, or if no dataset is given and the job has several.
    pub async fn export(&self, id: JobId, dataset: Option<&str>) -> Result<Export, Error> {
        let Job { datasets, mut exports } = self.job(id).await?;
        let Some(name) = dataset else {
            // Some of them may be removed, such as skipped ones.
            return match datasets {
                Some(asked) if asked.datasets.len() > 1 => Err(Error::SeveralDatasets(asked.datasets)),
                _ => Ok(exports.remove(0)),
            };
        };
        let _ = self.origin.dataset.set(name.to_owned());
        exports.into_iter().find(|export| export.dataset == name).ok_or_else(|| Error::NoExport(name.to_owned()))
    }

    /// Returns the exports of a job that a change is for: that of the dataset, or all that the caller may see.
    ///
    /// # Errors
    /// As [`job`](Service::job). If the job has no such export.
    pub(super) async fn exports_of(&self, id: JobId, dataset: Option<&str>) -> Result<Vec<Export>, Error> {
        match dataset {
            Some(_) => Ok(vec![self.export(id, dataset).await?]),
            None => Ok(self.job(id).await?.exports),
        }
    }

    fn visible(&self, job: Job) -> Result<Job, Error> {
        self.bounds.visible(job).ok_or(Error::NoJob)
    }

    /// Returns exports of several jobs as the caller sees them. Their errors may be of datasets that it may not see.
    pub(super) fn visible_exports(&self, exports: Vec<Export>) -> Vec<Export> {
        let alone = |export| self.bounds.visible(Job { datasets: None, exports: vec![export] });
        exports.into_iter().filter_map(alone).flat_map(|job| job.exports).collect()
    }

    /// Cancels a job, or asks its worker to stop.
    ///
    /// # Errors
    /// If the job does not exist, is being committed, or has ended otherwise; or if the caller may not see all of it.
    pub async fn cancel(&self, id: JobId) -> Result<Cancellation, Error> {
        self.whole_job(id).await?;
        match with_timeout(self.store.cancel(id)).await? {
            Cancelled::Asked(job) => {
                job.exports.iter().for_each(|export| self.origin.log_job(Action::Cancel, export));
                // The process that ends the job logs its end. This may be another process.
                if !job.status().is_terminal() {
                    log_event("cancel_requested", &job);
                }
                Ok(Cancellation::Asked(self.visible(job)?))
            }
            Cancelled::Already(job) => Ok(Cancellation::Already(self.visible(job)?)),
            Cancelled::Committing => Err(Error::Committing),
            Cancelled::Ended(status) => Err(Error::Ended(status)),
            Cancelled::Unknown => Err(Error::NoJob),
        }
    }

    /// Records that a consumer has loaded the files of an export and those of all previous exports of the lane. Without
    /// a dataset, records this of each export of the job that has files.
    ///
    /// Has no effect in a lane in which a later export was already acknowledged.
    ///
    /// # Errors
    /// If the job or the export does not exist or belongs to no consumer. If one of the exports has not been published,
    /// or if none has files.
    pub async fn acknowledge(&self, id: JobId, dataset: Option<&str>) -> Result<Job, Error> {
        let exports = self.exports_of(id, dataset).await?;
        if exports[0].consumer.is_none() {
            return Err(Error::AdHoc);
        }
        let status = Status::of_job(exports.iter().map(|export| export.status));
        let published: Vec<_> = exports.iter().filter(|export| export.status == Status::Completed).collect();
        // A published export stays published, so this check remains valid. If the job has ended with one, its other
        // exports were skipped, or their files were lost.
        if published.is_empty() || !status.is_terminal() {
            return Err(if status == Status::Skipped { Error::Skipped } else { Error::NotPublished(status) });
        }
        let datasets: Vec<_> = published.iter().map(|export| export.dataset.as_str()).collect();
        let moved = with_timeout(self.store.acknowledge(id, &datasets)).await?;
        for export in published.into_iter().filter(|export| moved.contains(&export.dataset)) {
            self.origin.log_job(Action::Acknowledge, export);
            job_event!(info, export, "export_acknowledged", number = export.number);
        }
        self.job(id).await
    }

    /// Returns a job when it has ended or `timeout` has passed.
    ///
    /// # Errors
    /// If there is no job with this id, or if there are too many followers.
    pub async fn ended_job(&self, id: JobId, timeout: Duration, subscriber: Subscriber) -> Result<Job, Error> {
        let deadline = Instant::now() + timeout;
        // Subscribe before reading the job, so that an end in between is not missed.
        let follower = self.followers.join(subscriber, id);
        let job = self.job(id).await?;
        if job.status().is_terminal() || Instant::now() >= deadline {
            return Ok(job);
        }
        tokio::select! {
            job = self.ended(follower?) => if let Some(job) = job { return Ok(job) },
            () = tokio::time::sleep_until(deadline) => {}
            () = self.stopping.cancelled() => {}
        }
        self.job(id).await
    }

    /// Returns a stream of a job's states: the current one, then one per detected change, up to the end of the job.
    ///
    /// # Errors
    /// If there is no job with this id, or if there are too many followers. If the database fails later, the stream
    /// ends after some time.
    pub async fn follow(&self, id: JobId, subscriber: Subscriber) -> Result<impl Stream<Item = Job> + use<>, Error> {
        let follower = self.followers.join(subscriber, id)?;
        let first = self.job(id).await?;
        // A poll that began earlier may return an older state of the job.
        let since = Instant::now();
        let start = (follower, first.clone(), since, self.clone());
        let changes = stream::unfold(start, async |(mut follower, last, since, service)| {
            let next = tokio::select! {
                next = service.changed(&mut follower, &last, since) => next?,
                // During a drain, the awaited job has just ended.
                () = service.stopping.cancelled(), if !last.status().is_terminal() => {
                    service.job(last.id()).await.ok().filter(|job| job.status().is_terminal())?
                }
            };
            Some((next.clone(), (follower, next, since, service)))
        });
        Ok(stream::once(std::future::ready(first)).chain(changes))
    }

    /// Lists up to `limit` jobs that the caller may see and that match a filter, newest first.
    ///
    /// # Errors
    /// If the caller may not see the filter's dataset, or if neither the catalog nor any job has it.
    pub async fn jobs(&self, filter: &Filter, limit: u32) -> Result<JobPage, Error> {
        if let Some(dataset) = &filter.dataset {
            self.require_dataset(dataset)?;
        }
        let JobPage { jobs, has_more } = with_timeout(self.store.jobs(filter, &self.bounds, limit)).await?;
        // Jobs are kept when their dataset is removed from the catalog.
        if let Some(dataset) = filter.dataset.as_ref().filter(|_| jobs.is_empty())
            && let Err(unknown) = self.dataset(dataset)
        {
            let any = Filter { dataset: Some(dataset.clone()), ..Filter::default() };
            if with_timeout(self.store.jobs(&any, &self.bounds, 1)).await?.jobs.is_empty() {
                return Err(unknown);
            }
        }
        let jobs = jobs.into_iter().filter_map(|job| self.bounds.visible(job)).collect();
        Ok(JobPage { jobs, has_more })
    }

    /// Counts the exports of the last day that the caller may see and that match a filter.
    ///
    /// # Errors
    /// If the caller may not see the filter's dataset.
    pub async fn activity(&self, filter: &Filter) -> Result<LastDay, Error> {
        if let Some(dataset) = &filter.dataset {
            self.require_dataset(dataset)?;
        }
        with_timeout(self.store.activity(filter, &self.bounds)).await
    }

    /// Lists the lane's exports published after the job `after`, by number. `from` limits them to higher numbers.
    ///
    /// # Errors
    /// If the lane has no completed export with this id, or the dataset doesn't exist.
    pub async fn published_after(
        &self,
        lane: Lane<'_>,
        after: JobId,
        from: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Export>, Error> {
        let exports = with_timeout(self.store.published_after(lane, after, from, limit)).await?;
        if exports.is_none() {
            // A dataset that is gone may have exports that a loader still wants.
            self.dataset(lane.dataset)?;
        }
        exports.ok_or(Error::Restored)
    }

    /// Returns [`Error::StandbyMissing`] if a write timed out because no synchronous standby confirms its commit. Such
    /// a write may have been done.
    async fn diagnose_timeout<T>(&self, written: Result<T, Error>) -> Result<T, Error> {
        if !matches!(&written, Err(Error::DatabaseUnavailable(cause)) if cause.is_wait_timeout()) {
            return written;
        }
        match tokio::time::timeout(DIAGNOSIS_TIMEOUT, self.probe.other_processes()).await {
            Ok(Err(cause @ store::Error::StandbyMissing)) => Err(cause.into()),
            _ => written,
        }
    }

    /// Waits for the end of a job, as the caller sees it. Returns `None` if the database fails.
    async fn ended(&self, mut follower: Follower) -> Option<Job> {
        loop {
            match follower.next().await.outcome {
                PollOutcome::Job(job) => {
                    let job = self.bounds.visible(Job::clone(&job))?;
                    if job.status().is_terminal() {
                        return Some(job);
                    }
                }
                PollOutcome::Failed => {}
                PollOutcome::Lost => return None,
            }
        }
    }

    /// Waits for a change of the job, as the caller sees it. Returns `None` if the job has ended or the database fails.
    async fn changed(&self, follower: &mut Follower, last: &Job, since: Instant) -> Option<Job> {
        while !last.status().is_terminal() {
            let Poll { begun, outcome } = follower.next().await;
            match outcome {
                PollOutcome::Job(job) if begun >= since => {
                    let job = self.bounds.visible(Job::clone(&job))?;
                    if is_changed(last, &job) {
                        return Some(job);
                    }
                }
                PollOutcome::Job(_) | PollOutcome::Failed => {}
                PollOutcome::Lost => return None,
            }
        }
        None
    }
}

/// Returns true if a client that follows the job sees a difference.
fn is_changed(last: &Job, job: &Job) -> bool {
    let state = |export: &Export| {
        let Export { status, progress, rows_exported, bytes_written, attempt, cancel_requested_at, .. } = *export;
        (status, progress, rows_exported, bytes_written, attempt, cancel_requested_at)
    };
    job.exports.iter().map(state).ne(last.exports.iter().map(state))
}

fn log_event(event: &'static str, job: &Job) {
    let Export { dataset, retry_of, .. } = job.first();
    tracing::info!(
        event,
        jobId = %job.id(),
        consumerId = job.consumer().map(ConsumerId::as_str),
        dataset = job.datasets.is_none().then_some(dataset.as_str()),
        exportType = %job.export_type(),
        datasets = job.datasets.as_ref().map(|_| job.exports.len()),
        retryOf = retry_of.map(tracing::field::display),
    );
}
