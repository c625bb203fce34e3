//! Jobs as clients make, read and cancel them.

use chrono::{DateTime, Utc};
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
use crate::store::open_jobs::Slot;
use crate::store::transitions::transition;
use crate::store::{CHANNEL, Error, Store};

/// The most open jobs of one consumer, and the most open ad-hoc jobs in all: enough for any client that waits for its
/// exports, and an end to a loop that doesn't wait.
const MAX_OPEN: i64 = 20;

/// The result of a request for an export.
#[derive(Debug)]
pub enum SubmitOutcome {
    /// A job was made of it.
    Accepted(Job),
    /// The request was sent before, and made this job.
    Before(Job),
    /// The idempotency key is of another request, which made this job.
    KeyTaken(Job),
    /// The export that the caller loaded last is not the lane's last export.
    OutOfStep(OutOfStep),
    /// The consumer has this many open jobs, and may have no more.
    TooManyOpen(i64),
    /// This many jobs are open in all, and no more may be.
    QueueFull(u32),
}

/// A job in a transaction that is not committed yet, and its place among the open ones.
pub(super) struct MadeJob<'s> {
    pub(super) job: Box<Job>,
    pub(super) slot: Slot<'s>,
}

/// The result of a request to cancel.
#[derive(Debug)]
pub enum Cancelled {
    /// The job is cancelled, or its worker will stop.
    Asked(Job),
    /// The job was cancelled before.
    Already(Job),
    /// Too late: the job's commit is under way, or its file is about to get its name.
    Committing,
    /// Too late: the job has ended.
    Ended(Status),
    /// There is no such job.
    Unknown,
}

impl Store {
    /// Makes a job: numbers it in its consumer's lane, names its file, and notifies the workers; unless the request's
    /// key was seen before, or too many jobs are open.
    ///
    /// # Errors
    /// If the database fails; there is no job then.
    pub async fn submit(
        &self,
        request: &Request,
        destination: Option<Uuid>,
        terms: Terms,
    ) -> Result<SubmitOutcome, Error> {
        match self.submit_once(request, destination, terms).await {
            // A key is unique for its consumer, and a lane's lock is for a dataset: the key was just sent with another
            // dataset.
            Err(Error::Sql(sqlx::Error::Database(e))) if e.constraint() == Some("exports_idempotency_key") => {
                self.submit_once(request, destination, terms).await
            }
            done => done,
        }
    }

    /// The job of an earlier request with the same key.
    pub async fn sent_before(&self, request: &Request) -> Result<Option<Job>, Error> {
        self.with(async |conn| sent_before(conn, request).await).await
    }

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
                Ok(MadeJob { job, slot }) => {
                    tx.commit().await?;
                    slot.confirm();
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

    /// Makes a job in a transaction that has entered its lane. The bound on open jobs holds until the transaction has
    /// ended: who commits it says so to the slot.
    pub(super) async fn insert<'s>(
        &'s self,
        tx: &mut PgConnection,
        request: &Request,
        lane_sequence: Option<i64>,
        destination: Option<Uuid>,
        terms: Terms,
    ) -> Result<Result<MadeJob<'s>, SubmitOutcome>, Error> {
        let now = next_time(tx, request).await?;
        if let Some(job) = sent_before(tx, request).await? {
            let is_same = request.asks_for(&job);
            return Ok(Err(if is_same { SubmitOutcome::Before(job) } else { SubmitOutcome::KeyTaken(job) }));
        }
        if let Some(why) = check_last_export(tx, request).await? {
            return Ok(Err(SubmitOutcome::OutOfStep(why)));
        }
        if open_of_consumer(tx, request).await? >= MAX_OPEN {
            return Ok(Err(SubmitOutcome::TooManyOpen(MAX_OPEN)));
        }
        let Some(slot) = self.slot(tx, terms.max_open).await? else {
            return Ok(Err(SubmitOutcome::QueueFull(terms.max_open)));
        };
        let (after_job, after_sha256) = match &request.after {
            Some(After::Export { job, sha256 }) => (Some(job.as_uuid()), sha256.as_deref()),
            Some(After::Nothing) | None => (None, None),
        };
        let stem = stem(request, now);
        let mut number = names_taken(tx, &stem).await? + 1;
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
                .fetch_optional(&mut *tx)
                .await?;
            match row {
                Some(row) => break Job::try_from(row)?,
                None => number += 1,
            }
        };
        Ok(Ok(MadeJob { job: Box::new(job), slot }))
    }

    /// A job, if there is one of this id.
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, Error> {
        let statement = sqlx::query_as(with_job_columns(include_str!("jobs/get.sql"))).bind(id.as_uuid());
        let row: Option<JobRow> = self.with(async |conn| statement.fetch_optional(conn).await).await?;
        row.map(Job::try_from).transpose()
    }

    /// Jobs by their ids, in no order. Leaves out ids of no job, and jobs that this version can't read.
    pub async fn jobs_by_id(&self, ids: &[JobId]) -> Result<Vec<Job>, Error> {
        let ids: Vec<_> = ids.iter().map(|id| id.as_uuid()).collect();
        let statement = sqlx::query_as(with_job_columns(include_str!("jobs/by_id.sql"))).bind(ids);
        let rows: Vec<JobRow> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        Ok(rows.into_iter().filter_map(|row| skip_unreadable(Job::try_from(row))).collect())
    }

    /// The last job of each of these lanes, consumers and datasets, that has one.
    pub async fn last_jobs(&self, consumers: &[&str], datasets: &[&str]) -> Result<Vec<Job>, Error> {
        let statement = sqlx::query_as(with_job_columns(include_str!("jobs/last.sql"))).bind(consumers).bind(datasets);
        let rows: Vec<JobRow> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        rows.into_iter().map(Job::try_from).collect()
    }

    /// Cancels a pending job, asks the worker of a processing one to stop.
    pub async fn cancel(&self, id: JobId) -> Result<Cancelled, Error> {
        let cancel = sqlx::query_as(with_job_columns(include_str!("jobs/cancel.sql"))).bind(id.as_uuid());
        let asked = self.transaction(async |tx| {
            // The commit of an export holds the row's lock: a cancel that waited for the lock would come too late
            // anyway.
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
                // The job is committed, and its file has no name yet.
                Status::Processing | Status::Pending => Cancelled::Committing,
                Status::Completed | Status::Failed => Cancelled::Ended(job.status),
            },
        })
    }
}

/// Takes the next number of a request's lane. The lanes stay locked to the end of the transaction: a request with the
/// same key is either seen or waits, and the consumer's open jobs are counted by one request at a time.
pub(super) async fn enter_lane(conn: &mut PgConnection, request: &Request) -> Result<Option<i64>, Error> {
    let consumer = request.consumer.as_ref().map_or("", |consumer| consumer.as_str());
    // All lanes of the consumer, in one order, so that its jobs are submitted one after the other, whichever datasets
    // they are of.
    sqlx::query(
        "-- store.jobs.lock_lanes
         select from cdc_export.lanes where consumer_id = $1 order by dataset for update",
    )
    .bind(consumer)
    .execute(&mut *conn)
    .await?;
    // The order of numbers is the order of commits. Exports without a consumer are worked in no order; their row is a
    // lock only.
    let sequence: i64 = sqlx::query_scalar(
        "-- store.jobs.next_in_lane
         insert into cdc_export.lanes as l (consumer_id, dataset, last_sequence) values ($1, $2, 1)
         on conflict (consumer_id, dataset) do update set last_sequence = l.last_sequence + 1
         returning last_sequence",
    )
    .bind(consumer)
    .bind(&request.dataset)
    .fetch_one(conn)
    .await?;
    Ok(request.consumer.as_ref().map(|_| sequence))
}

/// The time of a new job: the database's, but later than those of its lane's last job, also where the clock was set
/// back. The lane's row must be locked.
async fn next_time(conn: &mut PgConnection, request: &Request) -> Result<DateTime<Utc>, sqlx::Error> {
    sqlx::query_scalar(
        "-- store.jobs.next_time
         select greatest(clock_timestamp(), (
           select greatest(created_at, finished_at) + interval '1 microsecond' from exports
           where consumer_id = $1 and dataset = $2 order by lane_sequence desc limit 1))",
    )
    .bind(request.consumer.as_ref().map(|consumer| consumer.as_str()))
    .bind(&request.dataset)
    .fetch_one(conn)
    .await
}

/// Returns the difference if the export that the caller loaded last is not the lane's last one. A full export goes on
/// from anything.
async fn check_last_export(conn: &mut PgConnection, request: &Request) -> Result<Option<OutOfStep>, Error> {
    let Request { consumer: Some(consumer), dataset, after: Some(after), .. } = request else { return Ok(None) };
    match request.export_type {
        ExportType::Full => Ok(None),
        ExportType::Incremental | ExportType::Delta => out_of_step(conn, Lane { consumer, dataset }, after).await,
    }
}

/// The job that the request's key made.
async fn sent_before(conn: &mut PgConnection, request: &Request) -> Result<Option<Job>, Error> {
    let Some(key) = &request.key else { return Ok(None) };
    let row: Option<JobRow> = sqlx::query_as(with_job_columns(include_str!("jobs/sent_before.sql")))
        .bind(request.consumer.as_ref().map_or("", |consumer| consumer.as_str()))
        .bind(key.as_str())
        .fetch_optional(conn)
        .await?;
    row.map(Job::try_from).transpose()
}

/// Counts the open jobs of the request's consumer, or the open ad-hoc jobs, up to the bound.
async fn open_of_consumer(conn: &mut PgConnection, request: &Request) -> Result<i64, Error> {
    let open = match &request.consumer {
        Some(consumer) => sqlx::query_scalar(
            "-- store.jobs.open_of_consumer
             select count(*) from (
               select from exports where consumer_id = $2 and status in ('pending', 'processing') limit $1) open",
        )
        .bind(MAX_OPEN)
        .bind(consumer.as_str()),
        None => sqlx::query_scalar(
            "-- store.jobs.open_ad_hoc
             select count(*) from (
               select from exports where consumer_id is null and status in ('pending', 'processing') limit $1) open",
        )
        .bind(MAX_OPEN),
    };
    Ok(open.fetch_one(conn).await?)
}

/// Notifies the workers that this job was asked to stop.
async fn notify_cancel(conn: &mut PgConnection, job: JobId) -> Result<(), Error> {
    sqlx::query("-- store.jobs.notify_cancel\n select pg_notify($1, $2)")
        .bind(CHANNEL)
        .bind(job.to_string())
        .execute(conn)
        .await?;
    Ok(())
}
