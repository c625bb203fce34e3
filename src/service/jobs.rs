//! Operations on jobs: submit, get, list, cancel, acknowledge and follow.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::time::Instant;

use crate::audit::Action;
use crate::dataset::Dataset;
use crate::job::activity::LastDay;
use crate::job::batch::BatchRequest;
use crate::job::lane::Lane;
use crate::job::{Filter, IdempotencyKey, Job, JobId, Request, Status};
use crate::service::deadline::{on_table, with_timeout};
use crate::service::followers::{Follower, Poll, PollOutcome, Subscriber};
use crate::service::{DIAGNOSIS_TIMEOUT, Error, Service};
use crate::sink::Destination;
use crate::source;
use crate::store::{
    self,
    jobs::{Cancelled, SubmitOutcome},
    lanes::OutOfStep,
    tracked::{Obstacle, TableCheck},
};
use crate::telemetry::job_event;
use crate::trace::TraceParent;

impl Service {
    /// Accepts a job. The job is durable and survives a crash of this process.
    ///
    /// A repeated idempotency key returns the job created by the first request.
    ///
    /// # Errors
    ///
    /// If the dataset does not exist, or its table is missing, unreadable, untracked for a consumer or unsuitable for
    /// the selection. If the key was used for another request, if too many jobs are open, or if the destination is
    /// missing.
    pub async fn submit(&self, request: &Request) -> Result<Job, Error> {
        let dataset = self.dataset(&request.dataset)?;
        if let Err(bad) = self.check(dataset, request).await {
            // The same request was valid before. Its repetition succeeds regardless of the table's current state.
            let before = with_timeout(self.store.sent_before(request)).await?;
            return before.filter(|job| request.asks_for(job)).ok_or(bad);
        }
        let (mut jobs, is_new) = self.submit_all(slice::from_ref(request), None).await?;
        let job = jobs.remove(0);
        if is_new {
            let retry_of = job.retry_of.map(tracing::field::display);
            job_event!(info, job, "export_submitted", retryOf = retry_of);
        }
        Ok(job)
    }

    /// Accepts the jobs of one request, which was checked. The returned flag is false if the request was sent before.
    pub(super) async fn submit_all(
        &self,
        requests: &[Request],
        batch: Option<&BatchRequest>,
    ) -> Result<(Vec<Job>, bool), Error> {
        let destination = match self.destination.id().await.map_err(Error::from) {
            Err(missing @ Error::OutputMissing(_)) => return Err(missing),
            // Another failure may pass before a worker begins.
            found => found.ok(),
        };
        let submitted = with_timeout(self.store.submit(requests, batch, destination, self.terms)).await;
        match self.diagnose_timeout(submitted).await? {
            SubmitOutcome::Accepted(jobs) => {
                for job in &jobs {
                    let action = if job.retry_of.is_some() { Action::Retry } else { Action::Export };
                    self.origin.log_job(action, job);
                }
                Ok((jobs, true))
            }
            // Another key may have sent the same, and may export more.
            SubmitOutcome::Before(jobs) if jobs.iter().any(|job| !self.bounds.allow(job)) => Err(Error::KeyTaken(None)),
            SubmitOutcome::Before(jobs) => Ok((jobs, false)),
            SubmitOutcome::KeyTaken(job) => Err(Error::KeyTaken(self.bounds.allow(&job).then_some(job.id))),
            SubmitOutcome::OutOfStep(dataset, OutOfStep::NewerExports(jobs)) => {
                Err(Error::OutOfStep(batch.map(|_| dataset), jobs))
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
    ///
    /// If the job does not exist or has another status; and as [`submit`](Service::submit).
    pub async fn retry(
        &self,
        id: JobId,
        key: Option<IdempotencyKey>,
        trace: Option<TraceParent>,
    ) -> Result<Job, Error> {
        let job = self.job(id).await?;
        if let Some(batch) = job.batch {
            return Err(Error::OfBatch(batch));
        }
        if !matches!(job.status, Status::Failed | Status::Cancelled) {
            return Err(Error::NotToRetry(job.status));
        }
        let request = Request { retry_of: Some(id), key, trace, ..Request::from_job(&job) };
        self.submit(&request).await
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
            return Err(Error::NotReadable(source::Error::NotReadable(fault)));
        }
        match table?.tracking.obstacle(dataset, request.consumer.as_ref()) {
            Some(Obstacle::NoTable) => {
                return Err(Error::NoTable { dataset: dataset.name.clone(), table: dataset.table.to_string() });
            }
            Some(Obstacle::NotTracked) => return Err(Error::NotTracked(dataset.name.clone())),
            None => {}
        }
        if request.selection.is_all() {
            return Ok(());
        }
        on_table(self.source.check(dataset, &request.selection)).await?.map_err(|bad| match bad.is_masked {
            true => Error::ColumnMasked(bad),
            false => Error::BadSelection(bad),
        })
    }

    /// Returns a job.
    ///
    /// # Errors
    ///
    /// If there is no job with this id, or if the caller may not see it.
    pub async fn job(&self, id: JobId) -> Result<Job, Error> {
        let job = with_timeout(self.store.job(id)).await?.filter(|job| self.bounds.allow(job)).ok_or(Error::NoJob)?;
        self.origin.learn_names(&job);
        Ok(job)
    }

    /// Cancels a job, or asks its worker to stop. The returned flag is true if the job was already cancelled.
    ///
    /// # Errors
    ///
    /// If the job does not exist, is being committed, or has ended otherwise.
    pub async fn cancel(&self, id: JobId) -> Result<(Job, bool), Error> {
        match with_timeout(self.store.cancel(id)).await? {
            Cancelled::Asked(job) => {
                self.origin.log_job(Action::Cancel, &job);
                // The process that ends the job logs its end. This may be another process.
                if !job.status.is_terminal() {
                    job_event!(info, job, "cancel_requested");
                }
                Ok((job, false))
            }
            Cancelled::Already(job) => Ok((job, true)),
            Cancelled::Committing => Err(Error::Committing),
            Cancelled::Ended(status) => Err(Error::Ended(status)),
            Cancelled::OfBatch(batch) => Err(Error::OfBatch(batch)),
            Cancelled::Unknown => Err(Error::NoJob),
        }
    }

    /// Records that a consumer has loaded a job's files and those of all previous jobs in the lane.
    ///
    /// Has no effect if a later job was already acknowledged.
    ///
    /// # Errors
    ///
    /// If the job does not exist, belongs to no consumer, or has not been published.
    pub async fn acknowledge(&self, id: JobId) -> Result<Job, Error> {
        let job = self.job(id).await?;
        if job.consumer.is_none() {
            return Err(Error::AdHoc);
        }
        // A published job stays published, so this check remains valid.
        match job.status {
            Status::Completed => {}
            Status::Skipped => return Err(Error::Skipped),
            other => return Err(Error::NotPublished(other)),
        }
        if with_timeout(self.store.acknowledge(id)).await? {
            self.origin.log_job(Action::Acknowledge, &job);
            job_event!(info, job, "export_acknowledged", number = job.number);
        }
        self.job(id).await
    }

    /// Returns a job when it has ended or `timeout` has passed.
    ///
    /// # Errors
    ///
    /// If there is no job with this id, or if there are too many followers.
    pub async fn ended_job(&self, id: JobId, timeout: Duration, subscriber: Subscriber) -> Result<Job, Error> {
        let deadline = Instant::now() + timeout;
        // Subscribe before reading the job, so that an end in between is not missed.
        let follower = self.followers.join(subscriber, id);
        let job = self.job(id).await?;
        if job.status.is_terminal() || Instant::now() >= deadline {
            return Ok(job);
        }
        tokio::select! {
            job = ended(follower?) => if let Some(job) = job { return Ok(job) },
            () = tokio::time::sleep_until(deadline) => {}
            () = self.stopping.cancelled() => {}
        }
        self.job(id).await
    }

    /// Returns a stream of a job's states: the current one, then one per detected change, up to the end of the job.
    ///
    /// # Errors
    ///
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
                next = changed(&mut follower, &last, since) => next?,
                // During a drain, the awaited export has just ended.
                () = service.stopping.cancelled(), if !last.status.is_terminal() => {
                    service.job(last.id).await.ok().filter(|job| job.status.is_terminal())?
                }
            };
            Some((next.clone(), (follower, next, since, service)))
        });
        Ok(stream::once(std::future::ready(first)).chain(changes))
    }

    /// Lists the jobs that the caller may see and that match a filter, newest first.
    ///
    /// # Errors
    ///
    /// If the caller may not see the filter's dataset, or if neither the catalog nor any job has it.
    pub async fn jobs(&self, filter: &Filter, limit: u32) -> Result<Vec<Job>, Error> {
        if let Some(dataset) = &filter.dataset {
            self.require_dataset(dataset)?;
        }
        let jobs = with_timeout(self.store.jobs(filter, &self.bounds, limit)).await?;
        // Jobs are kept when their dataset is removed from the catalog.
        if let Some(dataset) = filter.dataset.as_ref().filter(|_| jobs.is_empty())
            && let Err(unknown) = self.dataset(dataset)
        {
            let any = Filter { dataset: Some(dataset.clone()), ..Filter::default() };
            if with_timeout(self.store.jobs(&any, &self.bounds, 1)).await?.is_empty() {
                return Err(unknown);
            }
        }
        Ok(jobs)
    }

    /// Counts the jobs of the last day that the caller may see and that match a filter.
    ///
    /// # Errors
    ///
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
    ///
    /// If the lane has no completed export with this id.
    pub async fn published_after(
        &self,
        lane: Lane<'_>,
        after: JobId,
        from: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Job>, Error> {
        with_timeout(self.store.published_after(lane, after, from, limit)).await?.ok_or(Error::Restored)
    }

    /// Returns [`Error::DatabaseSetBack`] if a write timed out because Postgres's transaction ids were set back, and
    /// [`Error::StandbyMissing`] if no synchronous standby confirms its commit.
    ///
    /// Such a write may wait for a transaction that never began, or may have been done.
    async fn diagnose_timeout<T>(&self, written: Result<T, Error>) -> Result<T, Error> {
        if !matches!(&written, Err(Error::DatabaseUnavailable(cause)) if cause.is_wait_timeout()) {
            return written;
        }
        match tokio::time::timeout(DIAGNOSIS_TIMEOUT, self.probe.other_processes()).await {
            Ok(Err(cause @ (store::Error::XidsSetBack(_) | store::Error::StandbyMissing))) => Err(cause.into()),
            _ => written,
        }
    }
}

/// Waits for the end of a job. Returns `None` if the database fails.
async fn ended(mut follower: Follower) -> Option<Job> {
    loop {
        match follower.next().await.outcome {
            PollOutcome::Job(job) if job.status.is_terminal() => return Some(Job::clone(&job)),
            PollOutcome::Job(_) | PollOutcome::Failed => {}
            PollOutcome::Lost => return None,
        }
    }
}

/// Waits for a change of the job. Returns `None` if the job has ended or the database fails.
async fn changed(follower: &mut Follower, last: &Job, since: Instant) -> Option<Job> {
    let visible_state = |job: &Job| {
        (job.status, job.progress, job.rows_exported, job.bytes_written, job.attempt, job.cancel_requested_at)
    };
    while !last.status.is_terminal() {
        let Poll { begun, outcome } = follower.next().await;
        match outcome {
            PollOutcome::Job(job) if begun >= since && visible_state(&job) != visible_state(last) => {
                return Some(Job::clone(&job));
            }
            PollOutcome::Job(_) | PollOutcome::Failed => {}
            PollOutcome::Lost => return None,
        }
    }
    None
}
