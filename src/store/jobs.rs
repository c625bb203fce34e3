//! A job's row as clients see it: made, read, cancelled, completed.

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::dataset::Signature;
use crate::file::name::{numbered, stem};
use crate::file::{Exported, FileLocation};
use crate::job::encoding::Encoding;
use crate::job::lane::Lane;
use crate::job::selection::Selection;
use crate::job::{After, ExportType, Failure, Job, JobId, Request, SnapshotReport, Status, Terms};
use crate::store::files::names_taken;
use crate::store::lanes::{Elsewhere, elsewhere};
use crate::store::queue::Lease;
use crate::store::{CHANNEL, Error, Store, watermarks};
use crate::watermark::{NewPosition, Position};

/// A job's status as it looks from outside: one that is completed, and whose file has no name yet, is still processing. The
/// indexes of the lists have it in just these words.
macro_rules! public_status {
    () => {
        "case when e.status = 'completed' and e.published_at is null then 'processing' else e.status end"
    };
}
pub(crate) use public_status;

/// The columns of [`JobRow`], in every statement that returns one.
macro_rules! job_columns {
    () => {
        concat!("e.id, e.consumer_id, e.dataset, e.export_type, e.format, e.compression, e.attempt, e.rows_exported, e.bytes_written, e.output_filename,
         ", $crate::store::jobs::public_status!(), " as status,
         case when e.status = 'completed' and e.published_at is null then 99::smallint else e.progress end as progress,
         case when e.published_at is not null then e.sha256 end as sha256, e.error_code, e.error_detail,
         e.selection, e.schema_changed, e.continuity, e.late_rows, e.key_only_deletes, e.open_transactions, e.oldest_transaction_seconds, e.table_rewritten,
         e.watermark_from, e.watermark_to, case when e.published_at is not null then e.number end as number, e.has_after, e.after_job, e.after_sha256, e.retry_of, e.created_at, e.started_at,
         case when e.status <> 'completed' or e.published_at is not null then e.finished_at end as finished_at")
    };
}
pub(crate) use job_columns;

#[derive(sqlx::FromRow)]
pub(crate) struct JobRow {
    id: Uuid,
    consumer_id: Option<String>,
    dataset: String,
    export_type: String,
    format: String,
    compression: String,
    status: String,
    progress: i16,
    attempt: i32,
    rows_exported: i64,
    bytes_written: i64,
    output_filename: String,
    sha256: Option<String>,
    error_code: Option<String>,
    error_detail: Option<String>,
    selection: Option<Json<Selection>>,
    schema_changed: Option<bool>,
    continuity: Option<String>,
    late_rows: Option<i64>,
    key_only_deletes: Option<i64>,
    open_transactions: Option<i32>,
    oldest_transaction_seconds: Option<f64>,
    table_rewritten: Option<bool>,
    watermark_from: Option<DateTime<Utc>>,
    watermark_to: Option<DateTime<Utc>>,
    number: Option<i64>,
    has_after: bool,
    after_job: Option<Uuid>,
    after_sha256: Option<String>,
    retry_of: Option<Uuid>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

impl TryFrom<JobRow> for Job {
    type Error = Error;

    fn try_from(row: JobRow) -> Result<Job, Error> {
        let continuity = row.continuity.map(|word| word.parse()).transpose()?;
        let error = row.error_code.map(|code| {
            Ok::<_, Error>(Failure { continuity, code: code.parse()?, detail: row.error_detail.unwrap_or_default() })
        });
        Ok(Job {
            id: row.id.into(),
            // Ids are checked before they are stored; one that somebody else put there is no consumer of ours.
            consumer: row.consumer_id.and_then(|id| id.parse().ok()),
            dataset: row.dataset,
            export_type: row.export_type.parse()?,
            selection: row.selection.map(|Json(selection)| selection).unwrap_or_default(),
            encoding: Encoding { format: row.format.parse()?, compression: row.compression.parse()? },
            status: row.status.parse()?,
            progress: row.progress.clamp(0, 100) as u8,
            rows_exported: row.rows_exported.unsigned_abs(),
            bytes_written: row.bytes_written.unsigned_abs(),
            output_filename: row.output_filename,
            sha256: row.sha256,
            attempt: row.attempt.unsigned_abs(),
            error: error.transpose()?,
            report: SnapshotReport {
                continuity,
                open_transactions: row.open_transactions.and_then(|n| n.try_into().ok()),
                oldest_transaction_seconds: row.oldest_transaction_seconds,
                table_rewritten: row.table_rewritten.unwrap_or(false),
            },
            late_rows: row.late_rows.unwrap_or(0).unsigned_abs(),
            key_only_deletes: row.key_only_deletes.unwrap_or(0).unsigned_abs(),
            schema_changed: row.schema_changed.unwrap_or(false),
            watermark_from: row.watermark_from,
            watermark_to: row.watermark_to,
            number: row.number.map(i64::unsigned_abs),
            after: row.has_after.then(|| match row.after_job {
                Some(job) => After::Export { job: job.into(), sha256: row.after_sha256 },
                None => After::Nothing,
            }),
            retry_of: row.retry_of.map(JobId::from),
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
        })
    }
}

/// How many jobs of one consumer may be open, and of all that have none: enough for any client that waits for its exports, and an
/// end to a loop that doesn't.
const MOST_OPEN: i64 = 20;

/// How a request for an export went.
#[derive(Debug)]
pub enum Submitted {
    /// It is a job now.
    Made(Job),
    /// It was sent before, and is this job.
    Before(Job),
    /// Its key belongs to another request, which is this job.
    KeyTaken(Job),
    /// Its caller says that it loaded something else last than its lane has it.
    Elsewhere(Elsewhere),
    /// Its consumer has as many open jobs as it may have, this many.
    TooManyOpen(i64),
    /// There are as many open jobs as there may be, this many.
    QueueFull(u32),
}

/// How a request to cancel went.
#[derive(Debug)]
pub enum Cancelled {
    /// It is cancelled, or its worker will stop.
    Asked(Job),
    /// It was before.
    Already(Job),
    /// Too late: its commit is under way, or done and the file about to get its name.
    Committing,
    /// Too late: it has ended.
    Ended(Status),
    /// There is no such job.
    Unknown,
}

/// What an export found when it took its snapshot.
#[derive(Clone, Debug)]
pub struct CommitInput {
    /// Where the consumer stood.
    pub position: Position,
    /// Where it will stand.
    pub new_position: NewPosition,
    /// What was found beside it.
    pub report: SnapshotReport,
    /// Names and types of the file's columns.
    pub columns: Signature,
    /// Which export the folder's marker of the lane named.
    pub marker: Option<JobId>,
}

/// How a commit went. On all but `Done` the transaction must be rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// Everything is written; only the `COMMIT` itself is missing.
    Done,
    /// The lease is somebody else's by now, or the job was cancelled.
    NotOurs,
    /// Somebody moved the consumer's watermark since the export began.
    WatermarkChanged,
}

impl Store {
    /// Makes a job: numbers it in its consumer's lane, names its file, and hints that it is there. Unless its key was seen
    /// before, or too much is open.
    ///
    /// # Errors
    /// If the database fails; there is no job then.
    pub async fn submit(&self, request: &Request, store: Option<Uuid>, terms: Terms) -> Result<Submitted, Error> {
        match self.submit_once(request, store, terms).await {
            // A key is its consumer's, a lane's lock the dataset's: it was just sent for another one.
            Err(Error::Sql(sqlx::Error::Database(e))) if e.constraint() == Some("exports_idempotency_key") => {
                self.submit_once(request, store, terms).await
            }
            done => done,
        }
    }

    /// The job that a request made which was sent before, by its key.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn sent_before(&self, request: &Request) -> Result<Option<Job>, Error> {
        let mut conn = self.connection().await?;
        let job = sent_before(conn.get(), request).await?;
        conn.give_back();
        Ok(job)
    }

    async fn submit_once(&self, request: &Request, store: Option<Uuid>, terms: Terms) -> Result<Submitted, Error> {
        let mut conn = self.connection().await?;
        let mut tx = conn.get().begin().await?;
        // The lanes stay locked to the end of the transaction: whoever sent the same key meanwhile is seen, or waits, and what is
        // open of the consumer is counted once.
        lock_lanes(&mut tx, request).await?;
        let lane_seq = next_in_lane(&mut tx, request).await?;
        let now = next_time(&mut tx, request).await?;
        let refused = match sent_before(&mut tx, request).await? {
            Some(job) if request.made(&job) => Some(Submitted::Before(job)),
            Some(job) => Some(Submitted::KeyTaken(job)),
            None => match out_of_step(&mut tx, request).await? {
                Some(elsewhere) => Some(Submitted::Elsewhere(elsewhere)),
                None if open_of_consumer(&mut tx, request).await? >= MOST_OPEN => {
                    Some(Submitted::TooManyOpen(MOST_OPEN))
                }
                None => None,
            },
        };
        if let Some(refused) = refused {
            tx.rollback().await?;
            conn.give_back();
            return Ok(refused);
        }
        let Some(place) = self.place(&mut tx, terms.max_open).await? else {
            tx.rollback().await?;
            conn.give_back();
            return Ok(Submitted::QueueFull(terms.max_open));
        };
        let (after_job, after_sha256) = match &request.after {
            Some(After::Export { job, sha256 }) => (Some(job.as_uuid()), sha256.as_deref()),
            Some(After::Nothing) | None => (None, None),
        };
        let stem = stem(request, now);
        let mut number = names_taken(&mut tx, &stem).await? + 1;
        let job = loop {
            let row: Option<JobRow> = sqlx::query_as(concat!(
                "-- store.jobs.insert
                 insert into exports as e
                   (id, consumer_id, dataset, lane_seq, export_type, format, max_attempts, output_filename, store_id, created_at,
                    retry_of, idempotency_key, compression, selection, has_after, after_job, after_sha256)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
                 on conflict (lower(output_filename)) do nothing
                 returning pg_notify($18, ''), ",
                job_columns!()
            ))
            .bind(JobId::new().as_uuid())
            .bind(request.consumer.as_ref().map(|c| c.as_str()))
            .bind(&request.dataset)
            .bind(lane_seq)
            .bind(request.export_type.as_str())
            .bind(request.encoding.format.as_str())
            .bind(terms.max_attempts as i32)
            .bind(numbered(&stem, number, request.encoding))
            .bind(store)
            .bind(now)
            .bind(request.retry_of.map(JobId::as_uuid))
            .bind(request.key.as_ref().map(|key| key.as_str()))
            .bind(request.encoding.compression.as_str())
            .bind(Some(Json(&request.selection)).filter(|_| !request.selection.is_all()))
            .bind(request.after.is_some())
            .bind(after_job)
            .bind(after_sha256)
            .bind(CHANNEL)
            .fetch_optional(&mut *tx)
            .await?;
            match row {
                Some(row) => break Job::try_from(row)?,
                None => number += 1,
            }
        };
        tx.commit().await?;
        conn.give_back();
        place.made();
        Ok(Submitted::Made(job))
    }

    /// A job, if there is one of this id.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, Error> {
        let mut conn = self.connection().await?;
        let row: Option<JobRow> =
            sqlx::query_as(concat!("-- store.jobs.get\n select ", job_columns!(), " from exports e where e.id = $1"))
                .bind(id.as_uuid())
                .fetch_optional(conn.get())
                .await?;
        conn.give_back();
        row.map(Job::try_from).transpose()
    }

    /// The last job of each of these lanes, consumers and datasets, that has one.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn last_jobs(&self, consumers: &[&str], datasets: &[&str]) -> Result<Vec<Job>, Error> {
        let mut conn = self.connection().await?;
        let rows: Vec<JobRow> = sqlx::query_as(concat!(
            "-- store.jobs.last
             select e.* from unnest($1::text[], $2::text[]) as l (consumer_id, dataset)
             cross join lateral (select ",
            job_columns!(),
            " from exports e where e.consumer_id = l.consumer_id and e.dataset = l.dataset order by e.lane_seq desc limit 1) e"
        ))
        .bind(consumers)
        .bind(datasets)
        .fetch_all(conn.get())
        .await?;
        conn.give_back();
        rows.into_iter().map(Job::try_from).collect()
    }

    /// Cancels a pending job, asks the worker of a processing one to stop.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn cancel(&self, id: JobId) -> Result<Cancelled, Error> {
        let mut conn = self.connection().await?;
        let mut tx = conn.get().begin().await?;
        // The commit of an export holds the row's lock: who waits for it would be told "too late" after it anyway.
        sqlx::query("-- store.jobs.cancel.timeout\n set local lock_timeout = '500ms'").execute(&mut *tx).await?;
        let updated: Result<Option<JobRow>, sqlx::Error> = sqlx::query_as(concat!(
            "-- store.jobs.cancel
             update exports e
             set status = case e.status when 'pending' then 'cancelled' else e.status end,
                 cancel_requested_at = coalesce(e.cancel_requested_at, clock_timestamp()),
                 finished_at = case e.status when 'pending' then greatest(clock_timestamp(), e.created_at) end
             where e.id = $1 and e.status in ('pending', 'processing')
             returning ",
            job_columns!()
        ))
        .bind(id.as_uuid())
        .fetch_optional(&mut *tx)
        .await;
        match updated {
            Err(sqlx::Error::Database(e)) if e.code().as_deref() == Some("55P03") => return Ok(Cancelled::Committing),
            Err(error) => return Err(error.into()),
            Ok(Some(row)) => {
                hint_at_cancel(&mut tx, id).await?;
                tx.commit().await?;
                conn.give_back();
                let _ = self.ended.send(id);
                return Ok(Cancelled::Asked(row.try_into()?));
            }
            Ok(None) => tx.rollback().await?,
        }
        conn.give_back();
        Ok(match self.job(id).await? {
            None => Cancelled::Unknown,
            Some(job) => match job.status {
                Status::Cancelled => Cancelled::Already(job),
                // Completed, its file without a name yet.
                Status::Processing | Status::Pending => Cancelled::Committing,
                Status::Completed | Status::Failed => Cancelled::Ended(job.status),
            },
        })
    }
}

/// Completes a job and moves its consumer's watermark, in the transaction whose snapshot was exported.
///
/// Whether the lease has expired doesn't matter here, only whose it is: clocks decide when a job is taken over, never what is
/// true. A lock of somebody else's is waited for three times, since the export may have taken hours.
///
/// # Errors
/// If the database fails; the transaction is broken then.
pub async fn commit(
    conn: &mut PgConnection,
    lease: &Lease,
    found: &CommitInput,
    exported: &Exported,
) -> Result<Committed, Error> {
    for _ in 0..2 {
        sqlx::raw_sql("-- store.jobs.commit.savepoint\n savepoint writes").execute(&mut *conn).await?;
        match commit_once(conn, lease, found, exported).await {
            Err(Error::LockConflict(_)) => {
                sqlx::raw_sql("-- store.jobs.commit.again\n rollback to savepoint writes").execute(&mut *conn).await?;
            }
            done => return done,
        }
    }
    commit_once(conn, lease, found, exported).await
}

async fn commit_once(
    conn: &mut PgConnection,
    lease: &Lease,
    found: &CommitInput,
    exported: &Exported,
) -> Result<Committed, Error> {
    let job = &lease.job;
    let file = &exported.file;
    let FileLocation::Folder { inode, modified_ns } = file.identity.location;
    let CommitInput { position, new_position, report, columns, marker } = found;
    let watermark_to = job.consumer.as_ref().and_then(|_| position.advanced_to(exported.last_updated_at));
    let completed = sqlx::query(
        "-- store.jobs.commit
         with completed as (
         update exports e
         set status = 'completed', progress = 100, finished_at = greatest(clock_timestamp(), e.started_at),
             lease_token = null, lease_owner = null, lease_expires_at = null, error_code = null, error_detail = null,
             rows_exported = $3, bytes_written = $4, sha256 = $5, staged_name = $6, file_inode = $7, file_modified_ns = $8,
             watermark_from = $9, watermark_to = $10, store_id = $11, purge_hold = null,
             continuity = $12, late_rows = $13, open_transactions = $14, oldest_transaction_seconds = $15, table_rewritten = $16,
             columns_hash = md5(($17::text[])[1]), key_only_deletes = $18, marker_seen = $19,
             schema_changed = (
               select l.columns_hash <> all (array(select md5(form) from unnest($17::text[]) as form)) from exports l
               where l.consumer_id = e.consumer_id and l.dataset = e.dataset and l.lane_seq < e.lane_seq
                 and l.status = 'completed'
               order by l.lane_seq desc limit 1)
         where id = $1 and lease_token = $2 and status = 'processing' and cancel_requested_at is null
         returning e.id, e.output_filename)
         insert into cdc_export.files (job, part, name, staged_name, place, bytes, rows, sha256)
         select id, 1, output_filename, $6, $20, $4, $3, $5 from completed",
    )
    .bind(job.id.as_uuid())
    .bind(lease.token().as_uuid())
    .bind(exported.rows as i64)
    .bind(file.identity.bytes as i64)
    .bind(&file.sha256)
    .bind(&file.name)
    .bind(inode as i64)
    .bind(modified_ns)
    .bind(position.last_exported_at)
    .bind(watermark_to)
    .bind(file.destination)
    .bind(report.continuity.map(|why| why.as_str()))
    .bind(exported.late_rows as i64)
    .bind(report.open_transactions.map(|n| n as i32))
    .bind(report.oldest_transaction_seconds)
    .bind(report.table_rewritten)
    .bind(columns.forms())
    .bind(exported.key_only_deletes as i64)
    .bind(marker.map(JobId::as_uuid))
    .bind(Json(&file.identity.location))
    .execute(&mut *conn)
    .await?;
    if completed.rows_affected() == 0 {
        return Ok(Committed::NotOurs);
    }
    let Some(consumer) = &job.consumer else { return Ok(Committed::Done) };
    if position.version.is_none() && exported.rows == 0 {
        // No position yet: the next export starts from the beginning as well, and nothing was missed.
        return Ok(Committed::Done);
    }
    let step = watermarks::Step { export_type: job.export_type, position, new_position, to: watermark_to };
    let moved = watermarks::advance(conn, consumer, &job.dataset, &step).await?;
    Ok(if moved { Committed::Done } else { Committed::WatermarkChanged })
}

async fn next_in_lane(conn: &mut PgConnection, request: &Request) -> Result<Option<i64>, Error> {
    // The lane's row stays locked to the end of the transaction: the order of numbers is the order of commits. Exports without
    // a consumer are worked in no order; their row is a lock only.
    let seq: i64 = sqlx::query_scalar(
        "-- store.jobs.next_in_lane
         insert into cdc_export.lanes as l (consumer_id, dataset, next_seq) values ($1, $2, 1)
         on conflict (consumer_id, dataset) do update set next_seq = l.next_seq + 1
         returning next_seq",
    )
    .bind(request.consumer.as_ref().map_or("", |consumer| consumer.as_str()))
    .bind(&request.dataset)
    .fetch_one(conn)
    .await?;
    Ok(request.consumer.as_ref().map(|_| seq))
}

/// The time of a new job: the database's, but later than those of its lane's last job, also where the clock was set back. The
/// lane's row must be locked.
async fn next_time(conn: &mut PgConnection, request: &Request) -> Result<DateTime<Utc>, Error> {
    let now = sqlx::query_scalar(
        "-- store.jobs.next_time
         select greatest(clock_timestamp(), (
           select greatest(created_at, finished_at) + interval '1 microsecond' from exports
           where consumer_id = $1 and dataset = $2 order by lane_seq desc limit 1))",
    )
    .bind(request.consumer.as_ref().map(|consumer| consumer.as_str()))
    .bind(&request.dataset)
    .fetch_one(conn)
    .await?;
    Ok(now)
}

/// Whether the request's caller stands elsewhere than its lane. A full export is good from everywhere.
async fn out_of_step(conn: &mut PgConnection, request: &Request) -> Result<Option<Elsewhere>, Error> {
    let Request { consumer: Some(consumer), dataset, after: Some(after), .. } = request else { return Ok(None) };
    match request.export_type {
        ExportType::Full => Ok(None),
        ExportType::Incremental | ExportType::Delta => elsewhere(conn, Lane { consumer, dataset }, after).await,
    }
}

/// The job that the request's key made.
async fn sent_before(conn: &mut PgConnection, request: &Request) -> Result<Option<Job>, Error> {
    let Some(key) = &request.key else { return Ok(None) };
    let row: Option<JobRow> = sqlx::query_as(concat!(
        "-- store.jobs.sent_before\n select ",
        job_columns!(),
        " from exports e where coalesce(e.consumer_id, '') = $1 and e.idempotency_key = $2"
    ))
    .bind(request.consumer.as_ref().map_or("", |consumer| consumer.as_str()))
    .bind(key.as_str())
    .fetch_optional(conn)
    .await?;
    row.map(Job::try_from).transpose()
}

/// Locks what lanes the consumer has, in one order: its jobs are submitted one after the other, whichever dataset they are of.
async fn lock_lanes(conn: &mut PgConnection, request: &Request) -> Result<(), Error> {
    sqlx::query(
        "-- store.jobs.lock_lanes
         select from cdc_export.lanes where consumer_id = $1 order by dataset for update",
    )
    .bind(request.consumer.as_ref().map_or("", |consumer| consumer.as_str()))
    .execute(conn)
    .await?;
    Ok(())
}

/// How many jobs of the request's consumer are open, or of those that have none; counted no further than matters.
async fn open_of_consumer(conn: &mut PgConnection, request: &Request) -> Result<i64, Error> {
    let open = match &request.consumer {
        Some(consumer) => sqlx::query_scalar(
            "-- store.jobs.open_of_consumer
             select count(*) from (
               select from exports where consumer_id = $2 and status in ('pending', 'processing') limit $1) open",
        )
        .bind(MOST_OPEN)
        .bind(consumer.as_str()),
        None => sqlx::query_scalar(
            "-- store.jobs.open_of_nobody
             select count(*) from (
               select from exports where consumer_id is null and status in ('pending', 'processing') limit $1) open",
        )
        .bind(MOST_OPEN),
    };
    Ok(open.fetch_one(conn).await?)
}

/// Hints that this job was asked to stop.
async fn hint_at_cancel(conn: &mut PgConnection, job: JobId) -> Result<(), Error> {
    sqlx::query("-- store.jobs.hint_at_cancel\n select pg_notify($1, $2)")
        .bind(CHANNEL)
        .bind(job.to_string())
        .execute(conn)
        .await?;
    Ok(())
}
