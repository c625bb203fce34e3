//! Converts rows of `cdc_export.exports` and `cdc_export.jobs` into exports and jobs as clients see them.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use crate::job::datasets::DatasetsRequest;
use crate::job::{Export, ExportFile, Failure, FailureCode, Job, not_published};
use crate::store::Error;
use cdc_capture::ExportReport;
use cdc_dataset::Selection;
use cdc_destination::FileLocation;
use cdc_manifest::{After, JobId, file_names};
use pg_rows::encoding::Encoding;
use pg_session::failure::chain;
use pg_session::statement::with_pieces;

/// The columns of [`ExportRow`]. Every statement that returns an export includes them.
pub(super) const EXPORT_COLUMNS: (&str, &str) = ("export_columns.sql", include_str!("export_columns.sql"));

/// The columns of [`JobRow`]. Every statement that returns whole jobs includes them, and orders its rows by job and
/// dataset.
pub(super) const JOB_COLUMNS: (&str, &str) = ("job_columns.sql", include_str!("job_columns.sql"));

/// Returns a statement with the columns of [`ExportRow`] in place of the line that includes them.
pub(super) fn with_export_columns(statement: &'static str) -> AssertSqlSafe<String> {
    AssertSqlSafe(with_pieces(statement, &[EXPORT_COLUMNS]))
}

/// Returns a statement with the columns of [`JobRow`] in place of the line that includes them.
pub(super) fn with_job_columns(statement: &'static str) -> AssertSqlSafe<String> {
    AssertSqlSafe(with_pieces(statement, &[JOB_COLUMNS, EXPORT_COLUMNS]))
}

/// Returns the value of a text column.
pub(super) fn parsed<T: FromStr<Err: Into<Error>>>(row: &PgRow, column: &str) -> Result<T, sqlx::Error> {
    let value = row.try_get::<&str, _>(column)?.parse();
    value.map_err(|cause: T::Err| sqlx::Error::Decode(Box::new(cause.into())))
}

/// A row with the columns of `job_columns.sql`: an export of a job.
#[derive(sqlx_macros::FromRow)]
pub(super) struct JobRow {
    /// The request with `datasets`. Only the first export of a job has it.
    datasets: Option<Json<DatasetsRequest>>,
    #[sqlx(flatten)]
    export: ExportRow,
}

/// Returns the jobs of these rows, which are in the order of jobs and datasets.
///
/// # Errors
/// For a job of which this version can't read an export.
pub(super) fn jobs_of(rows: Vec<JobRow>) -> impl Iterator<Item = Result<Job, Error>> {
    let mut rows = rows.into_iter().peekable();
    std::iter::from_fn(move || {
        let JobRow { datasets, export } = rows.next()?;
        let id = export.job;
        let mut exports = vec![export];
        while let Some(row) = rows.next_if(|row| row.export.job == id) {
            exports.push(row.export);
        }
        let exports = exports.into_iter().map(Export::try_from).collect::<Result<_, _>>();
        Some(exports.map(|exports| Job { datasets: datasets.map(|Json(asked)| asked), exports }))
    })
}

/// A row with the columns of `export_columns.sql`.
#[derive(sqlx_macros::FromRow)]
pub(crate) struct ExportRow {
    pub(super) job: Uuid,
    pub(super) is_of_datasets: bool,
    pub(super) consumer_id: Option<String>,
    pub(super) dataset: String,
    export_type: String,
    format: String,
    compression: String,
    pub(super) status: String,
    progress: i16,
    phase: Option<String>,
    attempt: i32,
    rows_exported: i64,
    rows_expected: Option<i64>,
    bytes_written: i64,
    output_filename: String,
    files: Option<Json<Vec<StoredFile>>>,
    digest: Option<String>,
    max_file_bytes: Option<i64>,
    skip_empty: Option<bool>,
    heals: bool,
    error_code: Option<String>,
    error_detail: Option<String>,
    error_dataset: Option<String>,
    selection: Option<Json<Selection>>,
    /// An [`ExportReport`], which is parsed later: a newer version may have written a word that this one doesn't know.
    report: Option<Value>,
    watermark_from: Option<DateTime<Utc>>,
    watermark_to: Option<DateTime<Utc>>,
    lane_sequence: Option<i64>,
    number: Option<i64>,
    acknowledged: Option<bool>,
    has_after: bool,
    after_job: Option<Uuid>,
    after_sha256: Option<String>,
    retry_of: Option<Uuid>,
    traceparent: Option<String>,
    next_attempt_at: Option<DateTime<Utc>>,
    cancel_requested_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

/// Logs the error of a row that this version can't read, and skips the row. A newer version may have written it, and
/// the caller still needs the other rows.
pub(super) fn skip_unreadable<T>(read: Result<T, Error>) -> Option<T> {
    read.inspect_err(|error| tracing::warn!(event = "job_unreadable", error = chain(error))).ok()
}

/// A file of `cdc_export.export_files`.
#[derive(Deserialize)]
pub(super) struct StoredFile {
    pub(super) name: String,
    pub(super) place: FileLocation,
    pub(super) location: Option<String>,
    pub(super) bytes: u64,
    pub(super) rows: u64,
    pub(super) sha256: String,
}

impl TryFrom<ExportRow> for Export {
    type Error = Error;

    fn try_from(row: ExportRow) -> Result<Export, Error> {
        let report: Option<ExportReport> = serde_json::from_value(row.report.unwrap_or_default())
            .map_err(|cause| sqlx::Error::Decode(cause.into()))?;
        let report = report.unwrap_or_default();
        let error = row.error_code.map(|code| {
            let code = code.parse()?;
            let detail = match code {
                FailureCode::NotPublished => not_published(row.job.into()),
                _ => row.error_detail.unwrap_or_default(),
            };
            let (continuity, dataset) = (report.continuity, row.error_dataset);
            Ok::<_, Error>(Failure { continuity, code, detail, dataset })
        });
        let files = row.files.map(|Json(files)| files).unwrap_or_default();
        let files = file_names(&row.output_filename, files.len()).zip(files).map(|(name, file)| {
            let StoredFile { location, bytes, rows, sha256, .. } = file;
            ExportFile { name, location, bytes, rows, sha256 }
        });
        Ok(Export {
            job: row.job.into(),
            is_of_datasets: row.is_of_datasets,
            // The service checks ids before it saves them. An invalid id was inserted by hand and belongs to no
            // consumer.
            consumer: row.consumer_id.and_then(|id| id.parse().ok()),
            dataset: row.dataset,
            export_type: row.export_type.parse()?,
            selection: row.selection.map(|Json(selection)| selection).unwrap_or_default(),
            encoding: Encoding { format: row.format.parse()?, compression: row.compression.parse()? },
            status: row.status.parse()?,
            progress: row.progress.clamp(0, 100) as u8,
            phase: row.phase.map(|word| word.parse()).transpose()?,
            rows_exported: row.rows_exported.unsigned_abs(),
            rows_expected: row.rows_expected.map(i64::unsigned_abs),
            bytes_written: row.bytes_written.unsigned_abs(),
            files: files.collect(),
            output_filename: row.output_filename,
            digest: row.digest,
            max_file_bytes: row.max_file_bytes.map(i64::unsigned_abs),
            skip_empty: row.skip_empty,
            heals: row.heals,
            attempt: row.attempt.unsigned_abs(),
            error: error.transpose()?,
            report,
            watermark_from: row.watermark_from,
            watermark_to: row.watermark_to,
            order: row.lane_sequence,
            number: row.number.map(i64::unsigned_abs),
            acknowledged: row.acknowledged,
            after: row.has_after.then(|| match row.after_job {
                Some(job) => After::Export { job: job.into(), sha256: row.after_sha256 },
                None => After::Nothing,
            }),
            retry_of: row.retry_of.map(JobId::from),
            trace: row.traceparent.and_then(|text| text.parse().ok()),
            next_attempt_at: row.next_attempt_at,
            cancel_requested_at: row.cancel_requested_at,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
        })
    }
}
