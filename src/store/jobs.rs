//! Creates, reads and cancels jobs on behalf of clients.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::connection::failure::SqlFailure;
use crate::file::name::{numbered, stem};
use crate::job::lane::Lane;
use crate::job::{After, ExportType, Job, JobId, Request, Status, Terms};
use crate::store::files::names_taken;
use crate::store::job_row::{JobRow, skip_unreadable, with_job_columns};
use crate::store::lanes::{OutOfStep, out_of_step};
use crate::store::open_jobs::{Full, Slots, key_max};
use crate::store::transitions::transition;
use crate::store::{CHANNEL, Error, Store};

/// The limit on open jobs of one lane, and on the open ad-hoc jobs of one API key in one dataset.
///
/// It is enough for any client that waits for its exports, and stops a client that submits in a loop.
const MAX_OPEN: i64 = 20;

/// The distance between two turns. Turns are times only so that an empty queue goes on from the present.
const TURN_STEP: TimeDelta = TimeDelta::microseconds(1);

/// The outcome of a request for an export.
#[derive(Debug)]
pub enum SubmitOutcome {
    /// The request created this job.
    Accepted(Job),
    /// The request was sent before and created this job.
    Before(Job),
    /// The idempotency key belongs to another request, which created this job.
    KeyTaken(Job),
    /// The export that the caller loaded last is not the last export of the lane.
    OutOfStep(OutOfStep),
    /// The lane has this many open jobs, which is the limit.
    TooManyOpen(i64),
    /// This many jobs are open in all, which is the limit.
    QueueFull(u32),
    /// The caller's key asked for this many open jobs, which is the limit.
    KeyFull(u32),
}

/// A job in a transaction that is not committed yet, with the slots that it reserved among the open jobs.
pub(super) struct MadeJob<'s> {
    pub(super) job: Box<Job>,
    pub(super) slots: Slots<'s>,
}

/// The outcome of a request to cancel a job.
#[derive(Debug)]
pub enum Cancelled {
    /// The job is cancelled, or its worker was asked to stop.
    Asked(Job),
    /// An earlier request cancelled the job.
    Already(Job),
    /// It is too late: the job is being committed, or its file is about to be published.
    Committing,
    /// It is too late: the job has ended with this status.
    Ended(Status),
    /// The job is not in the database.
    Unknown,
}

impl Store {
    /// Creates a job: numbers it in the lane of its consumer, names its file, and notifies the workers.
    ///
    /// Creates no job if the idempotency key was used before, or if too many jobs are open.
    ///
    /// # Errors
    /// If the database fails. No job is created then.
    pub async fn submit(
        &self,
        request: &Request,
        destination: Option<Uuid>,
        terms: Terms,
    ) -> Result<SubmitOutcome, Error> {
        match self.submit_once(request, destination, terms).await {
            // A concurrent request used the same key for another dataset. The lock of a lane covers one dataset.
            Err(Error::Sql(sqlx::Error::Database(e))) if e.constraint() == Some("exports_idempotency_key") => {
                self.submit_once(request, destination, terms).await
            }
            done => done,
        }
    }

    /// Returns the job of an earlier request with the same idempotency key.
    pub async fn sent_before(&self, request: &Request) -> Result<Option<Job>, Error> {
        self.with(async |conn| self.sent_before_in(conn, request).await).await
    }

    /// Submits a request in one transaction, without a retry.
    async fn submit_once(
        &self,
        request: &Request,
        destination: Option<Uuid>,
        terms: Terms,
    ) -> Result<SubmitOutcome, Error> {
        self.with(async |conn| {
            let mut tx = conn.begin().await?;
            let lane_sequence = enter_lane(&mut tx, request).await?;
            Ok::<_, Error>(match self.insert(&mut tx, request, lane_sequence, destination, terms).await? {
                Ok(MadeJob { job, slots }) => {
                    tx.commit().await?;
                    slots.confirm();
                    SubmitOutcome::Accepted(*job)
                }
                Err(refused) => {
                    tx.rollback().await?;
                    refused
                }
            })
        })
        .await
    }

    /// Creates a job in a transaction that has entered its lane.
    ///
    /// The limit on open jobs holds until the transaction ends. After the commit, the caller confirms the slots.
    pub(super) async fn insert<'s>(
        &'s self,
        tx: &mut PgConnection,
        request: &Request,
        lane_sequence: Option<i64>,
        destination: Option<Uuid>,
        terms: Terms,
    ) -> Result<Result<MadeJob<'s>, SubmitOutcome>, Error> {
        if let Some(job) = self.sent_before_in(tx, request).await? {
            let is_same = request.asks_for(&job);
            return Ok(Err(if is_same { SubmitOutcome::Before(job) } else { SubmitOutcome::KeyTaken(job) }));
        }
        if let Some(why) = check_last_export(tx, request).await? {
            return Ok(Err(SubmitOutcome::OutOfStep(why)));
        }
        let (open, last_turn, now) = self.lane_state(tx, request).await?;
        if open >= MAX_OPEN {
            return Ok(Err(SubmitOutcome::TooManyOpen(MAX_OPEN)));
        }
        let of_key = self.key_share.as_deref().map(|share| (&share.prefix, &share.open_jobs));
        let slots = match self.slots(tx, terms.max_open, of_key).await? {
            Ok(slots) => slots,
            Err(Full::All) => return Ok(Err(SubmitOutcome::QueueFull(terms.max_open))),
            Err(Full::OfKey) => return Ok(Err(SubmitOutcome::KeyFull(key_max(terms.max_open)))),
        };
        let turn = turn(slots.current_turn, last_turn);
        let (after_job, after_sha256) = match &request.after {
            Some(After::Export { job, sha256 }) => (Some(job.as_uuid()), sha256.as_deref()),
            Some(After::Nothing) | None => (None, None),
        };
        let stem = stem(request, now);
        let mut number = 1;
        let job = loop {
            let row: Option<JobRow> = sqlx::query_as(with_job_columns(include_str!("jobs/insert.sql")))
                .bind(JobId::random().as_uuid())
                .bind(request.consumer.as_ref().map(|c| c.as_str()))
                .bind(&request.dataset)
                .bind(lane_sequence)
                .bind(request.export_type.as_str())
                .bind(request.encoding.format.as_str())
                .bind(terms.max_attempts as i32)
                .bind(numbered(&stem, number, request.encoding))
                .bind(destination)
                .bind(now)
                .bind(request.retry_of.map(JobId::as_uuid))
                .bind(request.key.as_ref().map(|key| key.as_str()))
                .bind(request.encoding.compression.as_str())
                .bind(Some(Json(&request.selection)).filter(|_| !request.selection.is_all()))
                .bind(request.after.is_some())
                .bind(after_job)
                .bind(after_sha256)
                .bind(CHANNEL)
                .bind(request.max_file_bytes.map(|bytes| bytes as i64))
                .bind(request.trace.map(|place| place.to_string()))
                .bind(turn)
                .bind(self.key_share.as_ref().map(|share| share.prefix.as_str()))
                .bind(self.origin())
                .bind(request.skip_empty)
                .fetch_optional(&mut *tx)
                .await?;
            match row {
                Some(row) => break Job::try_from(row)?,
                None if number == 1 => number = names_taken(tx, &stem).await?.max(1) + 1,
                None => number += 1,
            }
        };
        Ok(Ok(MadeJob { job: Box::new(job), slots }))
    }

    /// Returns the owner of a request's idempotency key and of its turns: the consumer, or the API key of an ad-hoc
    /// export.
    fn requester(&self, request: &Request) -> String {
        match (&request.consumer, &self.key_share) {
            (Some(consumer), _) => consumer.as_str().to_owned(),
            (None, Some(share)) => format!(":{}", share.prefix.as_str()),
            (None, None) => String::new(),
        }
    }

    /// Returns the job that an earlier request with the same idempotency key created.
    async fn sent_before_in(&self, conn: &mut PgConnection, request: &Request) -> Result<Option<Job>, Error> {
        let Some(key) = &request.key else { return Ok(None) };
        let row: Option<JobRow> = sqlx::query_as(with_job_columns(include_str!("jobs/sent_before.sql")))
            .bind(self.requester(request))
            .bind(key.as_str())
            .fetch_optional(conn)
            .await?;
        row.map(Job::try_from).transpose()
    }

    /// Returns the number of open jobs of the request's lane, or of the open ad-hoc jobs of the caller's key in the
    /// dataset; the last turn of the consumer's or key's open jobs; and the time of a new job.
    ///
    /// Counts no further than the limit. The lane's row must be locked.
    async fn lane_state(
        &self,
        conn: &mut PgConnection,
        request: &Request,
    ) -> Result<(i64, Option<DateTime<Utc>>, DateTime<Utc>), Error> {
        let statement = sqlx::query_as(include_str!("jobs/lane_state.sql"))
            .bind(MAX_OPEN)
            .bind(request.consumer.as_ref().map(|consumer| consumer.as_str()))
            .bind(&request.dataset)
            .bind(self.requester(request));
        Ok(statement.fetch_one(conn).await?)
    }

    /// Returns a job, or `None` if it is not in the database.
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, Error> {
        let statement = sqlx::query_as(with_job_columns(include_str!("jobs/get.sql"))).bind(id.as_uuid());
        let row: Option<JobRow> = self.with(async |conn| statement.fetch_optional(conn).await).await?;
        row.map(Job::try_from).transpose()
    }

    /// Returns jobs by their ids, in no order. Omits ids that are not in the database, and jobs that this version can't
    /// read.
    pub async fn jobs_by_id(&self, ids: &[JobId]) -> Result<Vec<Job>, Error> {
        let ids: Vec<_> = ids.iter().map(|id| id.as_uuid()).collect();
        let statement = sqlx::query_as(with_job_columns(include_str!("jobs/by_id.sql"))).bind(ids);
        let rows: Vec<JobRow> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        Ok(rows.into_iter().filter_map(|row| skip_unreadable(Job::try_from(row))).collect())
    }

    /// Returns the last job of each of these lanes. Entry `i` of `consumers` and entry `i` of `datasets` name one lane.
    pub async fn last_jobs(&self, consumers: &[&str], datasets: &[&str]) -> Result<Vec<Job>, Error> {
        let statement = sqlx::query_as(with_job_columns(include_str!("jobs/last.sql"))).bind(consumers).bind(datasets);
        let rows: Vec<JobRow> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        Ok(rows.into_iter().filter_map(|row| skip_unreadable(Job::try_from(row))).collect())
    }

    /// Cancels a pending job, or asks the worker of a processing job to stop.
    pub async fn cancel(&self, id: JobId) -> Result<Cancelled, Error> {
        let cancel = sqlx::query_as(with_job_columns(include_str!("jobs/cancel.sql"))).bind(id.as_uuid());
        let cancel = cancel.bind(self.origin());
        let asked = self.transaction(async |tx| {
            // The commit of an export holds the row's lock. A cancel that waits for that lock is too late.
            sqlx::query("-- store.jobs.cancel.timeout\n set local lock_timeout = '500ms'").execute(&mut *tx).await?;
            let row = transition(tx, &self.listeners, cancel).await?;
            if row.is_some() {
                notify_cancel(tx, id).await?;
            }
            Ok::<_, Error>(row)
        });
        match asked.await {
            Err(Error::LockConflict(cause)) if SqlFailure::of(&cause) == SqlFailure::LockTimeout => {
                return Ok(Cancelled::Committing);
            }
            Err(error) => return Err(error),
            Ok(Some(row)) => return Ok(Cancelled::Asked(self.announce(row, None)?.job)),
            Ok(None) => {}
        }
        Ok(match self.job(id).await? {
            None => Cancelled::Unknown,
            Some(job) => match job.status {
                Status::Cancelled => Cancelled::Already(job),
                // The job is committed, and its file is not published yet.
                Status::Processing | Status::Pending => Cancelled::Committing,
                Status::Completed | Status::Skipped | Status::Failed => Cancelled::Ended(job.shown_status()),
            },
        })
    }
}

/// Takes the next number of a request's lane, and locks the lane until the transaction ends.
///
/// So one request at a time counts the open jobs of the lane.
pub(super) async fn enter_lane(conn: &mut PgConnection, request: &Request) -> Result<Option<i64>, Error> {
    // The numbers have the order of the commits. Exports without a consumer run in any order, so their row is only a
    // lock.
    let sequence: i64 = sqlx::query_scalar(
        "-- store.jobs.next_in_lane
         insert into cdc_export.lanes as l (consumer_id, dataset, last_sequence) values ($1, $2, 1)
         on conflict (consumer_id, dataset) do update set last_sequence = l.last_sequence + 1
         returning last_sequence",
    )
    .bind(request.consumer.as_ref().map_or("", |consumer| consumer.as_str()))
    .bind(&request.dataset)
    .fetch_one(conn)
    .await?;
    Ok(request.consumer.as_ref().map(|_| sequence))
}

/// Returns the reason if the export that the caller loaded last is not the last export of the lane. A full export needs
/// no earlier export, so it is never out of step.
async fn check_last_export(conn: &mut PgConnection, request: &Request) -> Result<Option<OutOfStep>, Error> {
    let Request { consumer: Some(consumer), dataset, after: Some(after), .. } = request else { return Ok(None) };
    match request.export_type {
        ExportType::Full => Ok(None),
        ExportType::Incremental | ExportType::Delta => out_of_step(conn, Lane { consumer, dataset }, after).await,
    }
}

/// Returns the turn of a new job, which decides when it is claimed.
///
/// `current` is the turn of the jobs that were claimed last, and `last` is the last turn of the consumer's open jobs.
/// Each further job of a consumer is two steps behind the one before it. The first job of another consumer is one step
/// behind the current turn, so it overtakes those. A job is overtaken by no more than the first jobs of two turns.
fn turn(current: DateTime<Utc>, last: Option<DateTime<Utc>>) -> DateTime<Utc> {
    let first = current + TURN_STEP;
    last.map_or(first, |last| first.max(last + TURN_STEP * 2))
}

/// Notifies the workers that a client requested the cancellation of this job.
async fn notify_cancel(conn: &mut PgConnection, job: JobId) -> Result<(), Error> {
    sqlx::query("-- store.jobs.notify_cancel\n select pg_notify($1, $2)")
        .bind(CHANNEL)
        .bind(job.to_string())
        .execute(conn)
        .await?;
    Ok(())
}
