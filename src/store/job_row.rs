//! A row of `exports` as clients see the job: the columns that statements select, and how they are read.

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use uuid::Uuid;

use crate::job::encoding::Encoding;
use crate::job::selection::Selection;
use crate::job::{After, Failure, Job, JobId, SnapshotReport};
use crate::store::Error;

/// A job's status as clients see it: a completed job whose file has no name yet is still processing. The indexes of the lists are on
/// exactly this expression.
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
         ", $crate::store::job_row::public_status!(), " as status,
         case when e.status = 'completed' and e.published_at is null then 99::smallint else e.progress end as progress,
         case when e.published_at is not null then e.sha256 end as sha256,
         case when e.published_at is not null then
           (select f.location from cdc_export.files f where f.job = e.id and f.part = 1) end as location, e.error_code, e.error_detail,
         e.selection, e.schema_changed, e.continuity, e.late_rows, e.key_only_deletes, e.quiet_deletes, e.open_transactions, e.oldest_transaction_seconds, e.table_rewritten,
         e.watermark_from, e.watermark_to, case when e.published_at is not null then e.number end as number, e.has_after, e.after_job, e.after_sha256, e.retry_of,
         case when e.status = 'pending' and e.attempt > 0 then e.run_at end as next_attempt_at, e.cancel_requested_at, e.created_at, e.started_at,
         case when e.status <> 'completed' or e.published_at is not null then e.finished_at end as finished_at")
    };
}
pub(crate) use job_columns;

#[derive(sqlx_macros::FromRow)]
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
    location: Option<String>,
    sha256: Option<String>,
    error_code: Option<String>,
    error_detail: Option<String>,
    selection: Option<Json<Selection>>,
    schema_changed: Option<bool>,
    continuity: Option<String>,
    late_rows: Option<i64>,
    key_only_deletes: Option<i64>,
    quiet_deletes: Option<i64>,
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
    next_attempt_at: Option<DateTime<Utc>>,
    cancel_requested_at: Option<DateTime<Utc>>,
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
            // Ids are checked before they are saved; an invalid one was inserted by hand, and is no consumer's.
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
            location: row.location,
            sha256: row.sha256,
            attempt: row.attempt.unsigned_abs(),
            error: error.transpose()?,
            report: SnapshotReport {
                continuity,
                open_transactions: row.open_transactions.and_then(|n| n.try_into().ok()),
                oldest_transaction_seconds: row.oldest_transaction_seconds,
                table_rewritten: row.table_rewritten.unwrap_or(false),
                quiet_deletes: row.quiet_deletes.unwrap_or(0).unsigned_abs(),
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
            next_attempt_at: row.next_attempt_at,
            cancel_requested_at: row.cancel_requested_at,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
        })
    }
}
