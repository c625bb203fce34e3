//! Creates, reads and cancels jobs on behalf of clients.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, Postgres, Transaction};
use uuid::Uuid;

use crate::file::name::{numbered, stem};
use crate::job::datasets::DatasetsRequest;
use crate::job::{Export, Job, Request, Status, Terms};
use crate::store::export_row::{ExportRow, JobRow, jobs_of, skip_unreadable, with_export_columns, with_job_columns};
use crate::store::files::names_taken;
use crate::store::lanes::{OutOfStep, out_of_step};
use crate::store::submissions::OpenSubmission;
use crate::store::transitions::transition;
use crate::store::{CHANNEL, Error, Store};
use cdc_manifest::{After, JobId, Lane};
use pg_rows::export_type::ExportType;
use pg_session::failure::SqlFailure;

/// The limit on open exports of one lane, and on the open ad-hoc exports of one API key in one dataset.
///
/// It is enough for any client that waits for its exports, and stops a client that submits in a loop.
const MAX_OPEN: i64 = 20;

/// The distance between two turns. Turns are times only so that an empty queue goes on from the present.
const TURN_STEP: TimeDelta = TimeDelta::microseconds(1);

#[derive(Debug)]
pub enum SubmitOutcome {
    Accepted(Job),
    Before(Job),
    /// The idempotency key belongs to another request, which created this job.
    KeyTaken(Box<Job>),
    /// The export that the caller loaded last is not the last export of the lane of this dataset.
    OutOfStep(String, OutOfStep),
    /// A lane has this many open exports, which is the limit.
    TooManyOpen(i64),
    /// This many jobs are open in all, which is the limit.
    QueueFull(u32),
    /// The caller's key asked for this many open jobs, half as many as there are places left.
    KeyFull(u32),
}

/// The outcome of a submission in a transaction that is not committed yet.
pub(super) enum Insertion<'s, R> {
    /// The job is inserted. Its submission, in all and of the caller's key, ends with the transaction.
    Made(Job, (OpenSubmission<'s>, Option<OpenSubmission<'s>>)),
    /// The transaction is to be rolled back, so that nothing is recorded.
    Refused(R),
}

/// An export that is not inserted yet.
struct MissingExport<'a> {
    request: &'a Request,
    lane_sequence: Option<i64>,
    /// The name of its file without the number.
    stem: String,
    number: i64,
}

impl MissingExport<'_> {
    /// Returns the export that the caller loaded last, with its SHA-256.
    fn after(&self) -> (Option<Uuid>, Option<String>) {
        match &self.request.after {
            Some(After::Export { job, sha256 }) => (Some(job.as_uuid()), sha256.clone()),
            Some(After::Nothing) | None => (None, None),
        }
    }
}

/// The state of the queue and of the lanes of a new job.
#[derive(sqlx_macros::FromRow)]
struct LaneState {
    open_in_lane: i64,
    last_turn: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    open_jobs: i32,
    open_of_key: i32,
    current_turn: DateTime<Utc>,
}

/// A request for a job: the requests for its exports, which differ in their datasets and in what belongs to one lane.
/// They are in the order of their datasets' names, so that two jobs lock their lanes in the same order.
#[derive(Clone, Copy)]
pub(super) struct NewJob<'a> {
    pub(super) requests: &'a [Request],
    pub(super) datasets: Option<&'a DatasetsRequest>,
    pub(super) destination: Option<Uuid>,
    pub(super) terms: Terms,
}

#[derive(Debug)]
pub enum Cancelled {
    /// The job is cancelled, or its worker was asked to stop.
    Asked(Job),
    /// An earlier request cancelled the job.
    Already(Job),
    /// It is too late: the job is being committed, or its files are about to be published.
    Committing,
    /// It is too late: the job has ended with this status.
    Ended(Status),
    Unknown,
}

impl Store {
    /// Creates a job: numbers each export in its lane, names its file, and notifies the workers.
    ///
    /// The requests differ in their datasets and in what belongs to one lane. They are in the order of their datasets'
    /// names.
    ///
    /// Creates no job if the idempotency key was used before, or if too many jobs are open.
    pub async fn submit(
        &self,
        requests: &[Request],
        datasets: Option<&DatasetsRequest>,
        destination: Option<Uuid>,
        terms: Terms,
    ) -> Result<SubmitOutcome, Error> {
        let new = NewJob { requests, datasets, destination, terms };
        match self.submit_once(new).await {
            // A concurrent request used the same key for another dataset. The lock of a lane covers one dataset.
            Err(Error::Sql(sqlx::Error::Database(e))) if e.constraint() == Some("jobs_idempotency_key") => {
                self.submit_once(new).await
            }
            done => done,
        }
    }

    /// Returns the job of an earlier request with the same idempotency key.
    pub async fn sent_before(&self, request: &Request) -> Result<Option<Job>, Error> {
        self.with(async |conn| self.sent_before_in(conn, request).await).await
    }

    /// Submits a request in one transaction, without a retry.
    async fn submit_once(&self, new: NewJob<'_>) -> Result<SubmitOutcome, Error> {
        self.with(async |conn| {
            let mut tx = conn.begin().await?;
            let lane_sequences = enter_lanes(&mut tx, new.requests).await?;
            let insertion = self.insert(&mut tx, new, &lane_sequences).await?;
            finish(tx, insertion, SubmitOutcome::Accepted).await
        })
        .await
    }

    /// Creates a job in a transaction that has entered its lanes.
    pub(super) async fn insert<'s>(
        &'s self,
        tx: &mut PgConnection,
        new: NewJob<'_>,
        lane_sequences: &[Option<i64>],
    ) -> Result<Insertion<'s, SubmitOutcome>, Error> {
        let NewJob { requests, datasets, terms, .. } = new;
        if let Some(job) = self.sent_before_in(tx, &requests[0]).await? {
            return Ok(Insertion::Refused(match requests[0].asks_for(datasets, &job) {
                true => SubmitOutcome::Before(job),
                false => SubmitOutcome::KeyTaken(Box::new(job)),
            }));
        }
        // A full export needs no earlier export, so it is never out of step.
        for request in requests.iter().filter(|request| request.export_type != ExportType::Full) {
            let Request { consumer: Some(consumer), dataset, after: Some(after), .. } = request else { continue };
            if let Some(why) = out_of_step(tx, Lane { consumer, dataset }, after).await? {
                return Ok(Insertion::Refused(SubmitOutcome::OutOfStep(dataset.clone(), why)));
            }
        }
        let submission = self.submissions.enter();
        let of_key = self.key_share.as_ref().map(|share| share.submissions.enter());
        let state = self.lane_state(tx, requests, terms.max_open).await?;
        if state.open_in_lane >= MAX_OPEN {
            return Ok(Insertion::Refused(SubmitOutcome::TooManyOpen(MAX_OPEN)));
        }
        let open = state.open_jobs.unsigned_abs() + submission.ahead;
        if open >= terms.max_open {
            return Ok(Insertion::Refused(SubmitOutcome::QueueFull(terms.max_open)));
        }
        let max_of_key = (terms.max_open - open).div_ceil(2);
        if of_key.as_ref().is_some_and(|of_key| state.open_of_key.unsigned_abs() + of_key.ahead >= max_of_key) {
            return Ok(Insertion::Refused(SubmitOutcome::KeyFull(max_of_key)));
        }
        let turn = self.turn(state.current_turn, state.last_turn);
        let job = self.insert_named(tx, new, lane_sequences, state.now, turn).await?;
        Ok(Insertion::Made(job, (submission, of_key)))
    }

    /// Inserts a job with its exports, each with a name for its file that no other has.
    async fn insert_named(
        &self,
        tx: &mut PgConnection,
        NewJob { requests, datasets, destination, terms }: NewJob<'_>,
        lane_sequences: &[Option<i64>],
        now: DateTime<Utc>,
        turn: DateTime<Utc>,
    ) -> Result<Job, Error> {
        let (id, first) = (JobId::random(), &requests[0]);
        let new_export = |(request, lane_sequence): (_, &Option<i64>)| MissingExport {
            request,
            lane_sequence: *lane_sequence,
            stem: stem(request, now),
            number: 1,
        };
        let mut missing: Vec<_> = requests.iter().zip(lane_sequences).map(new_export).collect();
        let mut exports: Vec<Export> = Vec::new();
        let mut is_inserted = false;
        while !missing.is_empty() {
            let (after_jobs, after_sha256s): (Vec<_>, Vec<_>) = missing.iter().map(MissingExport::after).unzip();
            let rows: Vec<ExportRow> = sqlx::query_as(with_export_columns(include_str!("jobs/insert.sql")))
                .bind(id.as_uuid())
                .bind(first.consumer.as_ref().map(|consumer| consumer.as_str()))
                .bind(datasets.map_or(first.export_type, |asked| asked.export_type).as_str())
                .bind(datasets.map(Json))
                .bind((!is_inserted).then_some(requests.len() as i32))
                .bind(first.encoding.format.as_str())
                .bind(first.encoding.compression.as_str())
                .bind(first.max_file_bytes.map(|bytes| bytes as i64))
                .bind(Some(Json(&first.selection)).filter(|_| !first.selection.is_all()))
                .bind(first.skip_empty)
                .bind(first.heals)
                .bind(first.retry_of.map(JobId::as_uuid))
                .bind(first.key.as_ref().map(|key| key.as_str()))
                .bind(self.key_share.as_ref().map(|share| share.prefix.as_str()))
                .bind(first.trace.map(|place| place.to_string()))
                .bind(terms.max_attempts as i32)
                .bind(turn)
                .bind(destination)
                .bind(now)
                .bind(CHANNEL)
                .bind(missing.iter().map(|new| &*new.request.dataset).collect::<Vec<_>>())
                .bind(missing.iter().map(|new| new.lane_sequence).collect::<Vec<_>>())
                .bind(missing.iter().map(|new| new.request.export_type.as_str()).collect::<Vec<_>>())
                .bind(missing.iter().map(|new| numbered(&new.stem, new.number, first.encoding)).collect::<Vec<_>>())
                .bind(first.encoding.extension())
                .bind(missing.iter().map(|new| new.request.after.is_some()).collect::<Vec<_>>())
                .bind(after_jobs)
                .bind(after_sha256s)
                .fetch_all(&mut *tx)
                .await?;
            is_inserted = true;
            let made = rows.into_iter().map(Export::try_from).collect::<Result<Vec<_>, _>>()?;
            missing.retain(|new| !made.iter().any(|export| export.dataset == new.request.dataset));
            exports.extend(made);
            for new in &mut missing {
                new.number = match new.number {
                    1 => names_taken(tx, &new.stem).await?.max(1) + 1,
                    number => number + 1,
                };
            }
        }
        exports.sort_by(|a, b| a.dataset.cmp(&b.dataset));
        Ok(Job { datasets: datasets.cloned(), exports })
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
        let owner = match (&request.consumer, &self.key_share) {
            (Some(consumer), _) => consumer.as_str().to_owned(),
            (None, Some(share)) => format!(":{}", share.prefix.as_str()),
            (None, None) => String::new(),
        };
        let rows = sqlx::query_as(with_job_columns(include_str!("jobs/sent_before.sql")))
            .bind(owner)
            .bind(key.as_str())
            .fetch_all(conn)
            .await?;
        jobs_of(rows).next().transpose()
    }

    /// Counts no further than the limits. The lanes' rows must be locked.
    async fn lane_state(
        &self,
        conn: &mut PgConnection,
        requests: &[Request],
        max_open: u32,
    ) -> Result<LaneState, sqlx::Error> {
        sqlx::query_as(include_str!("jobs/lane_state.sql"))
            .bind(MAX_OPEN)
            .bind(requests[0].consumer.as_ref().map(|consumer| consumer.as_str()))
            .bind(requests.iter().map(|request| &*request.dataset).collect::<Vec<_>>())
            .bind(self.key_share.as_ref().map(|share| share.prefix.as_str()))
            .bind(i64::from(max_open))
            .fetch_one(conn)
            .await
    }

    pub async fn job(&self, id: JobId) -> Result<Option<Job>, Error> {
        self.with(async |conn| jobs_in(conn, &[id]).await?.next().transpose()).await
    }

    /// Returns jobs by their ids. Omits ids that are not in the database, and jobs that this version can't read.
    pub async fn jobs_by_id(&self, ids: &[JobId]) -> Result<Vec<Job>, Error> {
        self.with(async |conn| Ok::<_, Error>(jobs_in(conn, ids).await?.filter_map(skip_unreadable).collect())).await
    }

    /// Returns the last export of each of these lanes. Entry `i` of `consumers` and entry `i` of `datasets` name one
    /// lane.
    pub async fn last_exports(&self, consumers: &[&str], datasets: &[&str]) -> Result<Vec<Export>, Error> {
        let statement = sqlx::query_as(with_export_columns(include_str!("jobs/last.sql")));
        let statement = statement.bind(consumers).bind(datasets);
        let rows: Vec<ExportRow> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        Ok(rows.into_iter().filter_map(|row| skip_unreadable(Export::try_from(row))).collect())
    }

    /// Cancels a pending job, or asks the worker of a processing job to stop.
    pub async fn cancel(&self, id: JobId) -> Result<Cancelled, Error> {
        let cancel = sqlx::query_as(with_export_columns(include_str!("jobs/cancel.sql"))).bind(id.as_uuid());
        let asked = self.transaction(async |tx| {
            // The commit of a job holds the row's lock. A cancel that waits for that lock is too late.
            sqlx::query("-- store.jobs.cancel.timeout\n set local lock_timeout = '500ms'").execute(&mut *tx).await?;
            let rows = transition(tx, &self.listeners, cancel).await?;
            if !rows.is_empty() {
                let notify = sqlx::query("-- store.jobs.notify_cancel\n select pg_notify($1, $2)");
                notify.bind(CHANNEL).bind(id.to_string()).execute(tx).await?;
            }
            Ok::<_, Error>(rows)
        });
        let rows = match asked.await {
            Err(Error::LockConflict(cause)) if SqlFailure::of(&cause) == SqlFailure::LockTimeout => {
                return Ok(Cancelled::Committing);
            }
            asked => asked?,
        };
        let is_asked = !self.announce_all(rows, None).is_empty();
        let Some(job) = self.job(id).await? else { return Ok(Cancelled::Unknown) };
        Ok(match job.status() {
            _ if is_asked => Cancelled::Asked(job),
            Status::Cancelled => Cancelled::Already(job),
            // The job is committed, and its files are not published yet.
            Status::Processing | Status::Pending => Cancelled::Committing,
            ended => Cancelled::Ended(ended.shown()),
        })
    }
}

/// Commits the transaction if it has a job. Otherwise rolls it back, so that nothing is recorded. Returns the outcome.
pub(super) async fn finish<T>(
    tx: Transaction<'_, Postgres>,
    insertion: Insertion<'_, T>,
    outcome: impl FnOnce(Job) -> T,
) -> Result<T, Error> {
    match insertion {
        Insertion::Made(job, submissions) => {
            tx.commit().await?;
            drop(submissions);
            Ok(outcome(job))
        }
        Insertion::Refused(refused) => {
            tx.rollback().await?;
            Ok(refused)
        }
    }
}

/// Returns jobs by their ids, in the order of the ids.
async fn jobs_in(
    conn: &mut PgConnection,
    ids: &[JobId],
) -> Result<impl Iterator<Item = Result<Job, Error>> + use<>, sqlx::Error> {
    let ids: Vec<_> = ids.iter().map(|id| id.as_uuid()).collect();
    let rows: Vec<JobRow> =
        sqlx::query_as(with_job_columns(include_str!("jobs/get.sql"))).bind(ids).fetch_all(conn).await?;
    Ok(jobs_of(rows))
}

/// Takes the next number in the lane of each request, and locks the lanes until the transaction ends.
///
/// So one request at a time counts the open exports of a lane.
pub(super) async fn enter_lanes(conn: &mut PgConnection, requests: &[Request]) -> Result<Vec<Option<i64>>, Error> {
    let consumer = requests[0].consumer.as_ref();
    // The numbers have the order of the commits. Exports without a consumer run in any order, so their row is only a
    // lock.
    let sequences: Vec<(String, i64)> = sqlx::query_as(
        "-- store.jobs.next_in_lanes
         insert into cdc_export.lanes as l (consumer_id, dataset, last_sequence)
         select $1, lane.dataset, 1 from unnest($2) with ordinality as lane (dataset, place) order by lane.place
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
