//! Jobs: asked for, looked at, stopped, followed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::time::Instant;

use crate::dataset::Dataset;
use crate::job::lane::Lane;
use crate::job::{Filter, IdempotencyKey, Job, JobId, Request, Status};
use crate::service::deadline::{on_table, with_timeout};
use crate::service::followers::{Follower, Poll, PollOutcome, Subscriber};
use crate::service::{Error, LAST_LOOK_TIMEOUT, Service};
use crate::sink::Destination;
use crate::source;
use crate::store::{
    self,
    jobs::{Cancelled, SubmitOutcome},
    lanes::OutOfStep,
    tracked::{Obstacle, Standing},
};
use crate::telemetry::job_event;
use crate::trace::TraceParent;

impl Service {
    /// Accepts a job. It will be run, whatever happens to this process. A request whose idempotency key was sent before
    /// returns the job that it made then.
    ///
    /// # Errors
    /// If there is no such dataset, its table isn't there, may not be read, can't meet the selection or isn't tracked
    /// for a consumer, the key was sent with another request, too many jobs are open, or the database fails.
    pub async fn submit(&self, request: &Request) -> Result<Job, Error> {
        let dataset = self.dataset(&request.dataset)?;
        if let Err(bad) = self.check(dataset, request).await {
            // A request that was sent before was good then, whatever the table is now.
            let before = with_timeout(self.store.sent_before(request)).await?;
            return before.filter(|job| request.asks_for(job)).ok_or(bad);
        }
        // A broken destination is the worker's to report: the job fails with the reason.
        let destination = self.destination.id().await.ok();
        let submitted = with_timeout(self.store.submit(request, destination, self.terms)).await;
        match self.or_set_back(submitted).await? {
            SubmitOutcome::Accepted(job) => {
                let retry_of = job.retry_of.map(tracing::field::display);
                job_event!(info, job, "export_submitted", retryOf = retry_of);
                Ok(job)
            }
            SubmitOutcome::Before(job) => Ok(job),
            SubmitOutcome::KeyTaken(job) => Err(Error::KeyTaken(job.id)),
            SubmitOutcome::OutOfStep(OutOfStep::GoneOn(jobs)) => Err(Error::OutOfStep(jobs)),
            SubmitOutcome::OutOfStep(OutOfStep::Unknown) => Err(Error::Restored),
            SubmitOutcome::TooManyOpen(open) => Err(Error::TooManyOpen(open)),
            SubmitOutcome::QueueFull(open) => Err(Error::QueueFull(open)),
        }
    }

    /// Accepts a job like one that failed or was cancelled.
    ///
    /// # Errors
    /// If there is no such job, it has not ended, or ended otherwise; and as [`submit`](Service::submit).
    pub async fn retry(
        &self,
        id: JobId,
        key: Option<IdempotencyKey>,
        trace: Option<TraceParent>,
    ) -> Result<Job, Error> {
        let job = self.job(id).await?;
        if !matches!(job.status, Status::Failed | Status::Cancelled) {
            return Err(Error::NotToRetry(job.status));
        }
        let request = Request { retry_of: Some(id), key, trace, ..Request::from_job(&job) };
        self.submit(&request).await
    }

    /// Checks that the dataset's table can meet a request.
    async fn check(&self, dataset: &Arc<Dataset>, request: &Request) -> Result<(), Error> {
        let standing = with_timeout(self.store.standing(dataset)).await;
        // Only a table that can't be read is looked at twice: the second look waits for a connection beside those who
        // count.
        if matches!(&standing, Ok(Standing { is_readable: false, .. }) | Err(Error::DatabaseDenied(_)))
            && let Some(fault) = on_table(self.source.unreadable(dataset)).await?
        {
            return Err(Error::NotReadable(source::Error::NotReadable(fault)));
        }
        match standing?.tracking.obstacle(dataset, request.consumer.as_ref()) {
            Some(Obstacle::NoTable) => {
                return Err(Error::NoTable { dataset: dataset.name.clone(), table: dataset.table.to_string() });
            }
            Some(Obstacle::NotTracked) => return Err(Error::NotTracked(dataset.name.clone())),
            None => {}
        }
        if request.selection.is_all() {
            return Ok(());
        }
        on_table(self.source.check(dataset, &request.selection)).await?.map_err(Error::BadSelection)
    }

    /// A job.
    ///
    /// # Errors
    /// If there is none of this id.
    pub async fn job(&self, id: JobId) -> Result<Job, Error> {
        with_timeout(self.store.job(id)).await?.ok_or(Error::NoJob)
    }

    /// Cancels a job, or asks its worker to stop. True: it was cancelled before.
    ///
    /// # Errors
    /// If it is too late, or there is no such job.
    pub async fn cancel(&self, id: JobId) -> Result<(Job, bool), Error> {
        match with_timeout(self.store.cancel(id)).await? {
            Cancelled::Asked(job) => {
                // The end is logged where the job ends, perhaps in another process.
                if !job.status.is_terminal() {
                    job_event!(info, job, "cancel_requested");
                }
                Ok((job, false))
            }
            Cancelled::Already(job) => Ok((job, true)),
            Cancelled::Committing => Err(Error::Committing),
            Cancelled::Ended(status) => Err(Error::Ended(status)),
            Cancelled::Unknown => Err(Error::NoJob),
        }
    }

    /// Takes a consumer's word that it has loaded a job's files, and those of all jobs before it in the lane. An
    /// earlier job than before changes nothing.
    ///
    /// # Errors
    /// If there is no such job, it is no consumer's, or nobody can have loaded it.
    pub async fn acknowledge(&self, id: JobId) -> Result<Job, Error> {
        let job = self.job(id).await?;
        if job.consumer.is_none() {
            return Err(Error::AdHoc);
        }
        // What is published stays so.
        if job.status != Status::Completed {
            return Err(Error::NotPublished(job.status));
        }
        if with_timeout(self.store.acknowledge(id)).await? {
            job_event!(info, job, "export_acknowledged", number = job.number);
        }
        self.job(id).await
    }

    /// A job, once it has ended or `timeout` has passed.
    ///
    /// # Errors
    /// If there is none of this id, too many follow jobs already, or the database fails.
    pub async fn ended_job(&self, id: JobId, timeout: Duration, subscriber: Subscriber) -> Result<Job, Error> {
        let deadline = Instant::now() + timeout;
        // Before the job is read, so that no end is missed in between.
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

    /// A job as it is now, then again each time that a poll shows a change, up to its end.
    ///
    /// # Errors
    /// If there is none of this id, too many follow jobs already, or the database fails; later that ends the stream
    /// after some time.
    pub async fn follow(&self, id: JobId, subscriber: Subscriber) -> Result<impl Stream<Item = Job> + use<>, Error> {
        let follower = self.followers.join(subscriber, id)?;
        let first = self.job(id).await?;
        // A poll that began earlier may show the job as it was before.
        let since = Instant::now();
        let start = (follower, first.clone(), since, self.clone());
        let changes = stream::unfold(start, async |(mut follower, last, since, service)| {
            let next = tokio::select! {
                next = changed(&mut follower, &last, since) => next?,
                // An export that a drain waited for has just ended.
                () = service.stopping.cancelled(), if !last.status.is_terminal() => {
                    service.job(last.id).await.ok().filter(|job| job.status.is_terminal())?
                }
            };
            Some((next.clone(), (follower, next, since, service)))
        });
        Ok(stream::once(std::future::ready(first)).chain(changes))
    }

    /// Jobs that match a filter, newest first.
    ///
    /// # Errors
    /// If neither the catalog nor any job has the filter's dataset, or the database fails.
    pub async fn jobs(&self, filter: &Filter, limit: u32) -> Result<Vec<Job>, Error> {
        let jobs = with_timeout(self.store.jobs(filter, limit)).await?;
        // A dataset that was taken out of the catalog has its jobs still.
        if let Some(dataset) = filter.dataset.as_ref().filter(|_| jobs.is_empty())
            && let Err(unknown) = self.dataset(dataset)
        {
            let any = Filter { dataset: Some(dataset.clone()), among: filter.among.clone(), ..Filter::default() };
            if with_timeout(self.store.jobs(&any, 1)).await?.is_empty() {
                return Err(unknown);
            }
        }
        Ok(jobs)
    }

    /// The lane's exports that were published after the job `after`, by their numbers; with `from`, those after that
    /// number.
    ///
    /// # Errors
    /// If the database knows no completed export of this id in the lane, or fails.
    pub async fn published_after(
        &self,
        lane: Lane<'_>,
        after: JobId,
        from: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Job>, Error> {
        with_timeout(self.store.published_after(lane, after, from, limit)).await?.ok_or(Error::Restored)
    }

    /// Finds whether a write failed since Postgres's transaction ids were set back: a write that waited in vain for
    /// another transaction may have waited for one that never began.
    async fn or_set_back<T>(&self, written: Result<T, Error>) -> Result<T, Error> {
        if !matches!(&written, Err(Error::DatabaseUnavailable(cause)) if cause.was_waiting()) {
            return written;
        }
        match tokio::time::timeout(LAST_LOOK_TIMEOUT, self.probe.ping()).await {
            Ok(Err(cause @ store::Error::XidsSetBack(_))) => Err(cause.into()),
            _ => written,
        }
    }
}

/// The job at its end; `None` if the database fails.
async fn ended(mut follower: Follower) -> Option<Job> {
    loop {
        match follower.next().await.outcome {
            PollOutcome::Job(job) if job.status.is_terminal() => return Some(Job::clone(&job)),
            PollOutcome::Job(_) | PollOutcome::Failed => {}
            PollOutcome::Lost => return None,
        }
    }
}

/// The job once it has changed; `None` if it has ended, or the database fails.
async fn changed(follower: &mut Follower, last: &Job, since: Instant) -> Option<Job> {
    let standing = |job: &Job| {
        (job.status, job.progress, job.rows_exported, job.bytes_written, job.attempt, job.cancel_requested_at)
    };
    while !last.status.is_terminal() {
        let Poll { begun, outcome } = follower.next().await;
        match outcome {
            PollOutcome::Job(job) if begun >= since && standing(&job) != standing(last) => {
                return Some(Job::clone(&job));
            }
            PollOutcome::Job(_) | PollOutcome::Failed => {}
            PollOutcome::Lost => return None,
        }
    }
    None
}
