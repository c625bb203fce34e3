//! Creates, reads and cancels jobs on behalf of clients.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::connection::failure::SqlFailure;
use crate::file::name::{numbered, stem};
use crate::job::batch::{Batch, BatchRequest};
use crate::job::lane::Lane;
use crate::job::{After, ExportType, Job, JobId, Request, Status, Terms};
use crate::store::files::names_taken;
use crate::store::job_row::{JobRow, skip_unreadable, with_job_columns};
use crate::store::lanes::{OutOfStep, out_of_step};
use crate::store::open_jobs::{Full, Slots};
use crate::store::transitions::transition;
use crate::store::{CHANNEL, Error, Store};

/// The limit on open jobs of one lane, and on the open ad-hoc jobs of one API key in one dataset.
///
/// It is enough for any client that waits for its exports, and stops a client that submits in a loop.
const MAX_OPEN: i64 = 20;

/// The distance between two turns. Turns are times only so that an empty queue goes on from the present.
const TURN_STEP: TimeDelta = TimeDelta::microseconds(1);

/// The outcome of a request for an export or a batch.
#[derive(Debug)]
pub enum SubmitOutcome {
    /// The request created these jobs: one, or the members of a batch in the order of the requests.
    Accepted(Vec<Job>),
    /// The request was sent before and created these jobs.
    Before(Vec<Job>),
    /// The idempotency key belongs to another request, which created this job.
    KeyTaken(Box<Job>),
    /// The export that the caller loaded last is not the last export of the lane of this dataset.
    OutOfStep(String, OutOfStep),
    /// A lane has this many open jobs, which is the limit.
    TooManyOpen(i64),
    /// This many jobs are open in all, which is the limit.
    QueueFull(u32),
    /// The caller's key asked for this many open jobs, half as many as there are places left.
    KeyFull(u32),
}

/// Jobs in a transaction that is not committed yet, with the slots that they reserved among the open jobs.
pub(super) struct MadeJobs<'s> {
    pub(super) jobs: Vec<Job>,
    pub(super) slots: Slots<'s>,
}

/// The facts that new jobs have in common, beside those of their requests.
struct NewJobs<'a> {
    batch: Option<&'a BatchRequest>,
    destination: Option<Uuid>,
    terms: Terms,
    now: DateTime<Utc>,
    turn: DateTime<Utc>,
}

/// The outcome of a request to cancel a job or a batch. Of a batch, the job is its first one.
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
    /// The job is a member of this batch, and is not cancelled alone.
    OfBatch(JobId),
    Unknown,
}

impl Store {
    /// Creates a job, or the jobs of a batch: numbers each in its lane, names its file, and notifies the workers.
    ///
    /// The requests of a batch differ in their datasets and in what belongs to one lane. They are in the order of their
    /// datasets' names, so that two batches lock their lanes in the same order.
    ///
    /// Creates no job if the idempotency key was used before, or if too many jobs are open.
    pub async fn submit(
        &self,
        requests: &[Request],
        batch: Option<&BatchRequest>,
        destination: Option<Uuid>,
        terms: Terms,
    ) -> Result<SubmitOutcome, Error> {
        match self.submit_once(requests, batch, destination, terms).await {
            // A concurrent request used the same key for another dataset. The lock of a lane covers one dataset.
            Err(Error::Sql(sqlx::Error::Database(e))) if e.constraint() == Some("exports_idempotency_key") => {
                self.submit_once(requests, batch, destination, terms).await
            }
            done => done,
        }
    }

    /// Returns the job of an earlier request with the same idempotency key.
    pub async fn sent_before(&self, request: &Request) -> Result<Option<Job>, Error> {
        self.with(async |conn| self.sent_before_in(conn, request).await).await
    }

    /// Submits requests in one transaction, without a retry.
    async fn submit_once(
        &self,
        requests: &[Request],
        batch: Option<&BatchRequest>,
        destination: Option<Uuid>,
        terms: Terms,
    ) -> Result<SubmitOutcome, Error> {
        // A write may succeed all the same, and then nobody reads it.
        self.require_xids().await?;
        self.with(async |conn| {
            let mut tx = conn.begin().await?;
            let lane_sequences = enter_lanes(&mut tx, requests).await?;
            Ok::<_, Error>(match self.insert(&mut tx, requests, batch, &lane_sequences, destination, terms).await? {
                Ok(MadeJobs { jobs, slots }) => {
                    tx.commit().await?;
                    slots.confirm();
                    SubmitOutcome::Accepted(jobs)
                }
                Err(refused) => {
                    tx.rollback().await?;
                    refused
                }
            })
        })
        .await
    }

    /// Creates jobs in a transaction that has entered their lanes.
    ///
    /// The limit on open jobs holds until the transaction ends. After the commit, the caller confirms the slots.
    pub(super) async fn insert<'s>(
        &'s self,
        tx: &mut PgConnection,
        requests: &[Request],
        batch: Option<&BatchRequest>,
        lane_sequences: &[Option<i64>],
        destination: Option<Uuid>,
        terms: Terms,
    ) -> Result<Result<MadeJobs<'s>, SubmitOutcome>, Error> {
        let first = &requests[0];
        if let Some(job) = self.sent_before_in(tx, first).await? {
            return Ok(Err(match self.repeated(tx, first, batch, &job).await? {
                Some(jobs) => SubmitOutcome::Before(jobs),
                None => SubmitOutcome::KeyTaken(Box::new(job)),
            }));
        }
        for request in requests {
            if let Some(why) = check_last_export(tx, request).await? {
                return Ok(Err(SubmitOutcome::OutOfStep(request.dataset.clone(), why)));
            }
        }
        let (open, last_turn, now) = self.lane_state(tx, requests).await?;
        if open >= MAX_OPEN {
            return Ok(Err(SubmitOutcome::TooManyOpen(MAX_OPEN)));
        }
        let of_key = self.key_share.as_deref().map(|share| (&share.prefix, &share.open_jobs));
        let slots = match self.slots(tx, terms.max_open, of_key).await? {
            Ok(slots) => slots,
            Err(Full::All) => return Ok(Err(SubmitOutcome::QueueFull(terms.max_open))),
            Err(Full::OfKey(max)) => return Ok(Err(SubmitOutcome::KeyFull(max))),
        };
        let new = NewJobs { batch, destination, terms, now, turn: self.turn(slots.current_turn, last_turn) };
        let jobs = self.insert_named(tx, requests, lane_sequences, &new).await?;
        Ok(Ok(MadeJobs { jobs, slots }))
    }

    /// Inserts jobs, each with a name for its file that no other has.
    async fn insert_named(
        &self,
        tx: &mut PgConnection,
        requests: &[Request],
        lane_sequences: &[Option<i64>],
        NewJobs { batch, destination, terms, now, turn }: &NewJobs<'_>,
    ) -> Result<Vec<Job>, Error> {
        let ids: Vec<_> = requests.iter().map(|_| JobId::random().as_uuid()).collect();
        let stems: Vec<_> = requests.iter().map(|request| stem(request, *now)).collect();
        let mut numbers = vec![1; requests.len()];
        let mut made: Vec<Option<Job>> = requests.iter().map(|_| None).collect();
        let first = &requests[0];
        loop {
            let missing: Vec<usize> = (0..made.len()).filter(|&at| made[at].is_none()).collect();
            if missing.is_empty() {
                return Ok(made.into_iter().flatten().collect());
            }
            let of = |at: &usize| &requests[*at];
            let after = |at: &usize| match &requests[*at].after {
                Some(After::Export { job, sha256 }) => (Some(job.as_uuid()), sha256.clone()),
                Some(After::Nothing) | None => (None, None),
            };
            let (after_jobs, after_sha256s): (Vec<_>, Vec<_>) = missing.iter().map(after).unzip();
            let rows: Vec<JobRow> = sqlx::query_as(with_job_columns(include_str!("jobs/insert.sql")))
                .bind(missing.iter().map(|&at| ids[at]).collect::<Vec<_>>())
                .bind(first.consumer.as_ref().map(|c| c.as_str()))
                .bind(missing.iter().map(|at| &*of(at).dataset).collect::<Vec<_>>())
                .bind(missing.iter().map(|&at| lane_sequences[at]).collect::<Vec<_>>())
                .bind(missing.iter().map(|at| of(at).export_type.as_str()).collect::<Vec<_>>())
                .bind(first.encoding.format.as_str())
                .bind(terms.max_attempts as i32)
                .bind(missing.iter().map(|&at| numbered(&stems[at], numbers[at], first.encoding)).collect::<Vec<_>>())
                .bind(destination)
                .bind(now)
                .bind(missing.iter().map(|at| of(at).retry_of.map(JobId::as_uuid)).collect::<Vec<_>>())
                .bind(first.key.as_ref().map(|key| key.as_str()))
                .bind(first.encoding.compression.as_str())
                .bind(Some(Json(&first.selection)).filter(|_| !first.selection.is_all()))
                .bind(missing.iter().map(|at| of(at).after.is_some()).collect::<Vec<_>>())
                .bind(after_jobs)
                .bind(after_sha256s)
                .bind(CHANNEL)
                .bind(first.max_file_bytes.map(|bytes| bytes as i64))
                .bind(first.trace.map(|place| place.to_string()))
                .bind(turn)
                .bind(self.key_share.as_ref().map(|share| share.prefix.as_str()))
                .bind(first.skip_empty)
                .bind(batch.map(|_| ids[0]))
                .bind(batch.map(Json))
                .bind(first.encoding.extension())
                .bind(first.heals)
                .fetch_all(&mut *tx)
                .await?;
            for row in rows {
                let at = ids.iter().position(|id| *id == row.id).expect("the statement inserts these ids");
                made[at] = Some(Job::try_from(row)?);
            }
            for at in missing.into_iter().filter(|&at| made[at].is_none()) {
                numbers[at] = match numbers[at] {
                    1 => names_taken(tx, &stems[at]).await?.max(1) + 1,
                    number => number + 1,
                };
            }
        }
    }

    /// Returns the jobs of an earlier request with the same idempotency key, if it asked for the same. `job` is the one
    /// that has the key.
    async fn repeated(
        &self,
        conn: &mut PgConnection,
        request: &Request,
        batch: Option<&BatchRequest>,
        job: &Job,
    ) -> Result<Option<Vec<Job>>, Error> {
        Ok(match (batch, job.batch) {
            (None, None) => request.asks_for(job).then(|| vec![job.clone()]),
            (Some(asked), Some(id)) => {
                let before = batch_in(conn, id).await?;
                before.filter(|before| before.request.is_repeated_by(asked)).map(|before| before.jobs)
            }
            (None, Some(_)) | (Some(_), None) => None,
        })
    }

    /// Returns a batch, or `None` if its first member is not in the database.
    pub async fn batch(&self, id: JobId) -> Result<Option<Batch>, Error> {
        self.with(async |conn| batch_in(conn, id).await).await
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

    /// Returns the turn of a new job, which decides when it is claimed.
    ///
    /// `current` is the turn of the jobs that were claimed last. `last` is the last turn of the consumer's open jobs
    /// that the same key asked for. Each further job of a consumer is two steps behind the one before it. The first job
    /// of another consumer is one step behind the current turn, so it overtakes those. With a key, it is also one step
    /// behind the last first job that the key asked this process for. So a key with many consumers goes on with one of
    /// them at a time, and holds up no job that another key asks for as one of these consumers.
    fn turn(&self, current: DateTime<Utc>, last: Option<DateTime<Utc>>) -> DateTime<Utc> {
        let first = current + TURN_STEP;
        match (last, &self.key_share) {
            (Some(last), _) => first.max(last + TURN_STEP * 2),
            (None, Some(share)) => share.first_turn(first, TURN_STEP),
            (None, None) => first,
        }
    }

    async fn sent_before_in(&self, conn: &mut PgConnection, request: &Request) -> Result<Option<Job>, Error> {
        let Some(key) = &request.key else { return Ok(None) };
        let row: Option<JobRow> = sqlx::query_as(with_job_columns(include_str!("jobs/sent_before.sql")))
            .bind(self.requester(request))
            .bind(key.as_str())
            .fetch_optional(conn)
            .await?;
        row.map(Job::try_from).transpose()
    }

    /// Returns the number of open jobs of the fullest of the requests' lanes, or of the open ad-hoc jobs of the
    /// caller's key in the dataset; the last turn of the consumer's open jobs that the key asked for; and the time of
    /// new jobs.
    ///
    /// Counts no further than the limit. The lanes' rows must be locked.
    async fn lane_state(
        &self,
        conn: &mut PgConnection,
        requests: &[Request],
    ) -> Result<(i64, Option<DateTime<Utc>>, DateTime<Utc>), Error> {
        let statement = sqlx::query_as(include_str!("jobs/lane_state.sql"))
            .bind(MAX_OPEN)
            .bind(requests[0].consumer.as_ref().map(|consumer| consumer.as_str()))
            .bind(requests.iter().map(|request| &*request.dataset).collect::<Vec<_>>())
            .bind(self.requester(&requests[0]))
            .bind(self.key_share.as_ref().map(|share| share.prefix.as_str()));
        Ok(statement.fetch_one(conn).await?)
    }

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
        if let Some(outcome) = self.ask_to_stop(id, false).await? {
            return Ok(outcome);
        }
        Ok(match self.job(id).await? {
            None => Cancelled::Unknown,
            Some(Job { batch: Some(batch), .. }) => Cancelled::OfBatch(batch),
            Some(job) => too_late(job.status, || job),
        })
    }

    /// Cancels a pending batch, or asks the worker of a processing batch to stop.
    pub async fn cancel_batch(&self, id: JobId) -> Result<Cancelled, Error> {
        if let Some(outcome) = self.ask_to_stop(id, true).await? {
            return Ok(outcome);
        }
        Ok(match self.batch(id).await? {
            None => Cancelled::Unknown,
            Some(batch) => too_late(batch.status(), || batch.jobs[0].clone()),
        })
    }

    /// Cancels a job or a batch. Returns `None` if it has ended, is committed or unknown, or is the member of a batch.
    async fn ask_to_stop(&self, id: JobId, is_batch: bool) -> Result<Option<Cancelled>, Error> {
        let cancel =
            sqlx::query_as(with_job_columns(include_str!("jobs/cancel.sql"))).bind(id.as_uuid()).bind(is_batch);
        let asked = self.transaction(async |tx| {
            // The commit of an export holds the row's lock. A cancel that waits for that lock is too late.
            sqlx::query("-- store.jobs.cancel.timeout\n set local lock_timeout = '500ms'").execute(&mut *tx).await?;
            let rows = transition(tx, &self.listeners, cancel).await?;
            if !rows.is_empty() {
                notify_cancel(tx, id).await?;
            }
            Ok::<_, Error>(rows)
        });
        let rows = match asked.await {
            Err(Error::LockConflict(cause)) if SqlFailure::of(&cause) == SqlFailure::LockTimeout => {
                return Ok(Some(Cancelled::Committing));
            }
            asked => asked?,
        };
        let cancelled = rows.into_iter().map(|row| Ok(self.announce(row, None)?.job));
        let cancelled: Vec<Job> = cancelled.collect::<Result<_, Error>>()?;
        let first = cancelled.into_iter().find(|job| job.id == id);
        Ok(first.map(Cancelled::Asked))
    }
}

fn too_late(status: Status, job: impl FnOnce() -> Job) -> Cancelled {
    match status {
        Status::Cancelled => Cancelled::Already(job()),
        // The job is committed, and its file is not published yet.
        Status::Processing | Status::Pending => Cancelled::Committing,
        Status::Completed | Status::Skipped => Cancelled::Ended(Status::Completed),
        Status::Failed => Cancelled::Ended(Status::Failed),
    }
}

async fn batch_in(conn: &mut PgConnection, id: JobId) -> Result<Option<Batch>, Error> {
    let request: Option<Option<Json<BatchRequest>>> =
        sqlx::query_scalar("-- store.jobs.batch_request\n select batch from exports where id = $1")
            .bind(id.as_uuid())
            .fetch_optional(&mut *conn)
            .await?;
    let Some(Json(request)) = request.flatten() else { return Ok(None) };
    let rows: Vec<JobRow> =
        sqlx::query_as(with_job_columns(include_str!("jobs/of_batch.sql"))).bind(id.as_uuid()).fetch_all(conn).await?;
    let jobs = rows.into_iter().map(Job::try_from).collect::<Result<_, _>>()?;
    Ok(Some(Batch { id, jobs, request }))
}

/// Takes the next number in the lane of each request, and locks the lanes until the transaction ends.
///
/// So one request at a time counts the open jobs of a lane.
pub(super) async fn enter_lanes(conn: &mut PgConnection, requests: &[Request]) -> Result<Vec<Option<i64>>, Error> {
    let consumer = requests[0].consumer.as_ref();
    // The numbers have the order of the commits. Exports without a consumer run in any order, so their row is only a
    // lock.
    let sequences: Vec<(String, i64)> = sqlx::query_as(
        "-- store.jobs.next_in_lanes
         insert into cdc_export.lanes as l (consumer_id, dataset, last_sequence)
         select $1, its.dataset, 1 from unnest($2) with ordinality as its (dataset, place) order by its.place
         on conflict (consumer_id, dataset) do update set last_sequence = l.last_sequence + 1
         returning dataset, last_sequence",
    )
    .bind(consumer.map_or("", |consumer| consumer.as_str()))
    .bind(requests.iter().map(|request| &*request.dataset).collect::<Vec<_>>())
    .fetch_all(conn)
    .await?;
    let sequences: HashMap<String, i64> = sequences.into_iter().collect();
    Ok(requests.iter().map(|request| sequences.get(&request.dataset).copied().filter(|_| consumer.is_some())).collect())
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

async fn notify_cancel(conn: &mut PgConnection, job: JobId) -> Result<(), Error> {
    sqlx::query("-- store.jobs.notify_cancel\n select pg_notify($1, $2)")
        .bind(CHANNEL)
        .bind(job.to_string())
        .execute(conn)
        .await?;
    Ok(())
}
