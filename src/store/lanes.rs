//! Reads a lane in order: its published exports by their numbers, and its exports under way.
//!
//! Checks that the export that a caller loaded last is the last export of the lane.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::freshness::LaneHistory;
use crate::job::Export;
use crate::store::export_row::{ExportRow, with_export_columns};
use crate::store::{Error, Store};
use cdc_capture::LaneEvidence;
use cdc_destination::Marker;
use cdc_manifest::{After, JobId, Lane};

/// The limit on exports of each kind that a caller out of step gets.
const MAX_LISTED: i64 = 100;

/// The reason why a caller is out of step with its lane.
#[derive(Debug)]
pub enum OutOfStep {
    /// The database doesn't know the export that the caller loaded, has it with other content, or has deleted a later
    /// one.
    Unknown,
    /// The lane has newer exports: those published since, up to a hundred, then those under way, in the order of the
    /// lane.
    NewerExports(Vec<Export>),
}

/// The number of completed exports that tell how often a lane has them.
const COMPLETED: i64 = 11;

/// The limit on counted failures of a lane.
const MAX_FAILURES: i64 = 1_000;

#[derive(sqlx_macros::FromRow)]
struct HistoryRow {
    consumer_id: String,
    dataset: String,
    failures: i64,
    failing_since: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    is_unpublished: bool,
    usual_seconds: Option<f64>,
    now: DateTime<Utc>,
}

impl Store {
    /// Returns how the latest exports of these lanes ended, by consumer and dataset, and the time by the database's
    /// clock.
    pub async fn histories(
        &self,
        consumers: &[&str],
        datasets: &[&str],
    ) -> Result<(HashMap<(String, String), LaneHistory>, DateTime<Utc>), Error> {
        let statement = sqlx::query_as(include_str!("lanes/history.sql"));
        let statement = statement.bind(consumers).bind(datasets).bind(COMPLETED).bind(MAX_FAILURES);
        let rows: Vec<HistoryRow> = self.in_index_order(async |tx| statement.fetch_all(tx).await).await?;
        let now = rows.first().map_or_else(Utc::now, |row| row.now);
        let history = |row: HistoryRow| {
            let history = LaneHistory {
                failures: row.failures.unsigned_abs(),
                failing_since: row.failing_since,
                completed_at: row.completed_at,
                is_unpublished: row.is_unpublished,
                // A clock that was set back makes a pause negative.
                usual_interval: row.usual_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            };
            ((row.consumer_id, row.dataset), history)
        };
        Ok((rows.into_iter().map(history).collect(), now))
    }

    /// Returns the evidence that each lane has, without a job.
    pub async fn evidence(&self, lanes: &[MarkedLane<'_>]) -> Result<Vec<LaneEvidence>, Error> {
        self.with(async |conn| evidence(conn, None, lanes).await).await
    }

    /// Returns up to `limit` exports of the lane that were published after the job `after`, by their numbers. With
    /// `from`, returns only exports with greater numbers.
    ///
    /// Returns `None` if the lane has no completed export with this id, or if a later export was deleted.
    pub async fn published_after(
        &self,
        lane: Lane<'_>,
        after: JobId,
        from: Option<u64>,
        limit: u32,
    ) -> Result<Option<Vec<Export>>, Error> {
        self.in_index_order(async |tx| {
            let Some(number) = export_number(tx, lane, after, None).await? else { return Ok(None) };
            let from = from.and_then(|from| i64::try_from(from).ok()).map_or(number, |from| from.max(number));
            published(tx, lane, from, i64::from(limit)).await
        })
        .await
        // A restored database may publish this export again now, with a greater number. The caller has it.
        .map(|exports| exports.map(|exports| exports.into_iter().filter(|export| export.job != after).collect()))
    }
}

/// A lane, with the marker of its destination. `None`: an ad-hoc export has no lane, and a lane may have no marker.
pub type MarkedLane<'a> = (Option<Lane<'a>>, Option<&'a Marker>);

/// Returns the evidence that each lane has. The job has an export in each.
pub async fn evidence(
    conn: &mut PgConnection,
    job: Option<JobId>,
    lanes: &[MarkedLane<'_>],
) -> Result<Vec<LaneEvidence>, sqlx::Error> {
    sqlx::query_as(include_str!("lanes/evidence.sql"))
        .bind(job.map(JobId::as_uuid))
        .bind(lanes.iter().map(|(lane, _)| Some(lane.as_ref()?.consumer.as_str())).collect::<Vec<_>>())
        .bind(lanes.iter().map(|(lane, _)| Some(lane.as_ref()?.dataset)).collect::<Vec<_>>())
        .bind(lanes.iter().map(|(_, marker)| Some(marker.as_ref()?.job.as_uuid())).collect::<Vec<_>>())
        .bind(lanes.iter().map(|(_, marker)| Some(&*marker.as_ref()?.sha256)).collect::<Vec<_>>())
        .fetch_all(conn)
        .await
}

/// Returns the reason if the caller is out of step. The lane's row must be locked, so that nothing is published
/// meanwhile.
pub(super) async fn out_of_step(
    conn: &mut PgConnection,
    lane: Lane<'_>,
    after: &After,
) -> Result<Option<OutOfStep>, Error> {
    let number = match after {
        After::Nothing => Some(removed_number(conn, lane).await?),
        After::Export { job, sha256 } => export_number(conn, lane, *job, sha256.as_deref()).await?,
    };
    let Some(number) = number else { return Ok(Some(OutOfStep::Unknown)) };
    let Some(mut exports) = published(conn, lane, number, MAX_LISTED).await? else {
        return Ok(Some(OutOfStep::Unknown));
    };
    exports.extend(under_way(conn, lane).await?);
    Ok(if exports.is_empty() { None } else { Some(OutOfStep::NewerExports(exports)) })
}

/// Returns the number of a completed export, or the last number of the lane if the export has no number yet. A skipped
/// export has the number of the one before it.
///
/// Returns `None` if the lane has no such export, or if its file has other content.
async fn export_number(
    conn: &mut PgConnection,
    lane: Lane<'_>,
    job: JobId,
    sha256: Option<&str>,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(include_str!("lanes/export_number.sql"))
        .bind(job.as_uuid())
        .bind(lane.consumer.as_str())
        .bind(lane.dataset)
        .bind(sha256)
        .fetch_optional(conn)
        .await
}

/// Returns the number of the lane's last export before its consumer was removed, or 0.
async fn removed_number(conn: &mut PgConnection, lane: Lane<'_>) -> Result<i64, sqlx::Error> {
    let statement = sqlx::query_scalar(
        "-- store.lanes.removed_number
         select coalesce((
           select removed_number from cdc_export.lanes where consumer_id = $1 and dataset = $2), 0)",
    );
    statement.bind(lane.consumer.as_str()).bind(lane.dataset).fetch_one(conn).await
}

/// Returns the exports after this number. Returns `None` if one of them was deleted.
async fn published(
    conn: &mut PgConnection,
    lane: Lane<'_>,
    number: i64,
    limit: i64,
) -> Result<Option<Vec<Export>>, Error> {
    // Reads the last number first, because another export may be published between the two statements.
    let last: Option<i64> = sqlx::query_scalar(
        "-- store.lanes.last_number
         select last_number from cdc_export.lanes where consumer_id = $1 and dataset = $2",
    )
    .bind(lane.consumer.as_str())
    .bind(lane.dataset)
    .fetch_optional(&mut *conn)
    .await?;
    let rows: Vec<ExportRow> = sqlx::query_as(with_export_columns(include_str!("lanes/published.sql")))
        .bind(lane.consumer.as_str())
        .bind(lane.dataset)
        .bind(number)
        .bind(limit)
        .fetch_all(conn)
        .await?;
    let exports: Vec<Export> = rows.into_iter().map(Export::try_from).collect::<Result<_, _>>()?;
    let found = exports.iter().map(|export| export.number.and_then(|found| i64::try_from(found).ok()));
    let is_whole = found.eq((number + 1..).take(exports.len()).map(Some));
    let expected = last.unwrap_or(0).saturating_sub(number).min(limit);
    Ok(Some(exports).filter(|exports| is_whole && exports.len() as i64 >= expected))
}

/// Returns the exports that have not ended, or whose files are not published yet.
async fn under_way(conn: &mut PgConnection, lane: Lane<'_>) -> Result<Vec<Export>, Error> {
    let rows: Vec<ExportRow> = sqlx::query_as(with_export_columns(include_str!("lanes/under_way.sql")))
        .bind(lane.consumer.as_str())
        .bind(lane.dataset)
        .bind(MAX_LISTED)
        .fetch_all(conn)
        .await?;
    rows.into_iter().map(Export::try_from).collect()
}
