//! Commits an export: completes its job and moves the watermark of its consumer, in the transaction whose snapshot was
//! exported.

use sqlx::PgConnection;
use sqlx::types::Json;

use crate::file::{Exported, Part, content_sha256};
use crate::job::columns::FileColumns;
use crate::job::lane::Lane;
use crate::job::{JobId, SnapshotReport};
use crate::manifest::Manifest;
use crate::store::job_row::with_job_columns;
use crate::store::lease::Lease;
use crate::store::transitions::{TransitionRow, transition};
use crate::store::{Error, Store, watermarks};
use crate::watermark::{NewPosition, Position};

/// The facts that a commit compares and saves beside the file.
#[derive(Clone, Debug)]
pub struct CommitInput {
    /// The consumer's position, which the commit must find unchanged.
    pub position: Position,
    /// The consumer's position after the commit.
    pub new_position: NewPosition,
    /// Facts about the snapshot beside the position.
    pub report: SnapshotReport,
    /// The names and types of the file's columns, for comparison with the lane's next export.
    pub signature: String,
    /// The columns of the file and the key, as saved with the job.
    pub columns: FileColumns,
    /// The export that the marker of the lane named at the destination. `None` if there was no marker.
    pub marker: Option<JobId>,
    /// The manifest of the export. `None` if the job has no consumer.
    pub manifest: Option<Manifest>,
}

/// The outcome of a commit. Unless it is `Done` or `Skipped`, the caller must roll the transaction back.
pub enum Committed {
    /// All rows are written, and the caller sends `COMMIT`. The field is true if they have the manifest.
    Done(bool),
    /// The same for an export without files. After `COMMIT`, the caller announces its end.
    Skipped(SkippedExport),
    /// Another worker has the lease, or the job was cancelled.
    NotOurs,
    /// The consumer's position changed since the export began.
    WatermarkChanged,
}

/// The number of times that a commit waits for a conflicting lock, because the export may have taken hours.
const MAX_ATTEMPTS: u32 = 3;

/// An export that found nothing and made no file, in a transaction that may not be committed yet.
pub struct SkippedExport(Box<TransitionRow>);

impl Store {
    /// Completes a job and moves its consumer's watermark, in the transaction whose snapshot was exported.
    ///
    /// Compares the token of the lease and ignores its expiry. Clocks decide when a job is taken over, and never decide
    /// who may commit.
    ///
    /// Waits [`MAX_ATTEMPTS`] times for a conflicting lock. The transaction must have the savepoint `writes`.
    ///
    /// # Errors
    /// If the database fails. The transaction can't be continued then.
    pub async fn commit(
        &self,
        conn: &mut PgConnection,
        lease: &Lease,
        found: &CommitInput,
        exported: &Exported,
    ) -> Result<Committed, Error> {
        let mut attempt = 1;
        loop {
            let done = match exported.parts.first() {
                Some(first) => complete(conn, lease, found, exported, first).await,
                None => self.skip(conn, lease, found).await,
            };
            match done {
                Err(Error::LockConflict(_)) if attempt < MAX_ATTEMPTS => {
                    sqlx::raw_sql("-- store.commit.again\n rollback to savepoint writes").execute(&mut *conn).await?;
                    attempt += 1;
                }
                done => return done,
            }
        }
    }

    /// Completes a job without a file, and removes the lane's earlier skipped jobs.
    async fn skip(&self, conn: &mut PgConnection, lease: &Lease, found: &CommitInput) -> Result<Committed, Error> {
        let CommitInput { position, new_position, report, .. } = found;
        let job = &lease.job;
        let lane = job.lane().ok_or_else(|| without_file(job.id))?;
        let skip = sqlx::query_as(with_job_columns(include_str!("commit/skip.sql")))
            .bind(job.id.as_uuid())
            .bind(lease.token().as_uuid())
            .bind(position.last_exported_at)
            .bind(report.open_transactions.map(|n| n as i32))
            .bind(report.oldest_transaction_seconds)
            .bind(report.table_rewritten);
        let Some(row) = transition(conn, &self.listeners, skip).await? else { return Ok(Committed::NotOurs) };
        if position.version.is_none() {
            // As for an export without rows: the next one begins at the beginning, too.
            return Ok(Committed::Skipped(SkippedExport(Box::new(row))));
        }
        let to = position.last_exported_at;
        let advance = watermarks::Advance { export_type: job.export_type, position, new_position, to };
        let moved = watermarks::advance(conn, lane, &advance).await?;
        Ok(if moved { Committed::Skipped(SkippedExport(Box::new(row))) } else { Committed::WatermarkChanged })
    }

    /// Announces a skipped export whose transaction is committed.
    ///
    /// # Errors
    /// As [`Store::announce`].
    pub fn announce_skipped(&self, skipped: SkippedExport) -> Result<(), Error> {
        self.announce(*skipped.0, None).map(drop)
    }

    /// Returns true if the last export of the lane that has files has these columns.
    pub async fn is_signature_of_last(&self, lane: Lane<'_>, signature: &str) -> Result<bool, Error> {
        let statement = sqlx::query_scalar(
            "-- store.commit.is_signature_of_last
             select coalesce((
               select e.columns_hash = md5($3) from exports e
               where e.consumer_id = $1 and e.dataset = $2 and e.status = 'completed'
               order by e.lane_sequence desc limit 1), false)",
        )
        .bind(lane.consumer.as_str())
        .bind(lane.dataset)
        .bind(signature);
        self.with(async |conn| statement.fetch_one(conn).await).await
    }
}

fn without_file(job: JobId) -> Error {
    Error::Sql(sqlx::Error::Protocol(format!("the export {job} has no file, and no lane in which it can be skipped")))
}

async fn complete(
    conn: &mut PgConnection,
    lease: &Lease,
    found: &CommitInput,
    exported: &Exported,
    first: &Part,
) -> Result<Committed, Error> {
    let job = &lease.job;
    let parts = &exported.parts;
    let column = |field: fn(&Part) -> i64| parts.iter().map(field).collect::<Vec<_>>();
    let texts = |field: fn(&Part) -> &str| parts.iter().map(field).collect::<Vec<_>>();
    let bytes = column(|part| part.staged.identity.bytes as i64);
    let places: Vec<_> = parts.iter().map(|part| Json(&part.staged.identity.location)).collect();
    let CommitInput { position, new_position, report, signature, columns, marker, manifest } = found;
    let watermark_to = job.consumer.as_ref().and_then(|_| position.advanced_to(exported.last_updated_at));
    let completed: Option<bool> = sqlx::query_scalar(include_str!("commit/complete.sql"))
        .bind(job.id.as_uuid())
        .bind(lease.token().as_uuid())
        .bind(exported.rows as i64)
        .bind(bytes.iter().sum::<i64>())
        .bind(content_sha256(parts))
        .bind(&first.staged.name)
        .bind(position.last_exported_at)
        .bind(watermark_to)
        .bind(first.staged.destination)
        .bind(report.continuity.map(|why| why.as_str()))
        .bind(exported.late_rows as i64)
        .bind(report.open_transactions.map(|n| n as i32))
        .bind(report.oldest_transaction_seconds)
        .bind(report.table_rewritten)
        .bind(signature)
        .bind(exported.key_only_deletes as i64)
        .bind(marker.map(JobId::as_uuid))
        .bind(Json(columns))
        .bind(report.quiet_deletes as i64)
        .bind(places)
        .bind(texts(|part| &part.staged.name))
        .bind(bytes)
        .bind(column(|part| part.rows as i64))
        .bind(texts(|part| &part.staged.sha256))
        .bind(manifest.as_ref().map(Manifest::text))
        .bind(manifest.as_ref().map(|manifest| &manifest.digest))
        .bind(manifest.as_ref().map(|manifest| manifest.number as i64))
        .fetch_optional(&mut *conn)
        .await?;
    // Announces nothing, because clients see another status only after the files are published.
    let Some(is_planned) = completed else { return Ok(Committed::NotOurs) };
    let Some(lane) = job.lane() else { return Ok(Committed::Done(is_planned)) };
    if position.version.is_none() && exported.rows == 0 {
        // Saves no position. The next export starts from the beginning as well, so it misses nothing.
        return Ok(Committed::Done(is_planned));
    }
    let advance = watermarks::Advance { export_type: job.export_type, position, new_position, to: watermark_to };
    let moved = watermarks::advance(conn, lane, &advance).await?;
    Ok(if moved { Committed::Done(is_planned) } else { Committed::WatermarkChanged })
}
