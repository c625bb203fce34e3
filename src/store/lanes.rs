//! A lane in its order: its published exports by their numbers, its jobs under way, and whether the export that a
//! caller says it loaded last is the lane's last one.

use sqlx::PgConnection;

use crate::job::lane::Lane;
use crate::job::{After, Job, JobId};
use crate::store::job_row::{JobRow, with_job_columns};
use crate::store::{Error, Store};

/// The most jobs of each kind that the answer to a caller out of step names.
const MAX_LISTED: i64 = 100;

/// Why a caller is out of step with its lane.
#[derive(Debug)]
pub enum OutOfStep {
    /// The database doesn't know the export that the caller loaded, or knows it with another content, or has forgotten
    /// a later one.
    Unknown,
    /// The lane has gone on: the exports published since, a hundred at most, then the jobs under way, in the lane's
    /// order.
    NewerExports(Vec<Job>),
}

impl Store {
    /// The lane's exports that were published after the job `after`, by their numbers, `limit` of them at most; with
    /// `from`, those after that number. `None`: no completed export of the lane has this id, or a later one was
    /// forgotten.
    pub async fn published_after(
        &self,
        lane: Lane<'_>,
        after: JobId,
        from: Option<u64>,
        limit: u32,
    ) -> Result<Option<Vec<Job>>, Error> {
        self.in_index_order(async |tx| {
            let Some(number) = export_number(tx, lane, after, None).await? else { return Ok(None) };
            let from = from.and_then(|from| i64::try_from(from).ok()).map_or(number, |from| from.max(number));
            published(tx, lane, from, i64::from(limit)).await
        })
        .await
    }
}

/// Why the caller is out of step, if it is. The lane's row must be locked, so that nothing is published meanwhile.
pub(super) async fn out_of_step(
    conn: &mut PgConnection,
    lane: Lane<'_>,
    after: &After,
) -> Result<Option<OutOfStep>, Error> {
    let number = match after {
        After::Nothing => Some(0),
        After::Export { job, sha256 } => export_number(conn, lane, *job, sha256.as_deref()).await?,
    };
    let Some(number) = number else { return Ok(Some(OutOfStep::Unknown)) };
    let Some(mut jobs) = published(conn, lane, number, MAX_LISTED).await? else { return Ok(Some(OutOfStep::Unknown)) };
    jobs.extend(under_way(conn, lane).await?);
    Ok(if jobs.is_empty() { None } else { Some(OutOfStep::NewerExports(jobs)) })
}

/// The number of a completed export, or the lane's last number if the export has none yet. `None`: the lane has no such
/// export, or its file has another content.
async fn export_number(
    conn: &mut PgConnection,
    lane: Lane<'_>,
    job: JobId,
    sha256: Option<&str>,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "-- store.lanes.export_number
         select coalesce(e.number, l.last_number) from exports e
         join cdc_export.lanes l on l.consumer_id = e.consumer_id and l.dataset = e.dataset
         where e.id = $1 and e.consumer_id = $2 and e.dataset = $3 and e.status = 'completed'
           and ($4::text is null or $4 in (e.sha256, e.digest))",
    )
    .bind(job.as_uuid())
    .bind(lane.consumer.as_str())
    .bind(lane.dataset)
    .bind(sha256)
    .fetch_optional(conn)
    .await
}

/// The exports after this number. `None`: one of them was forgotten.
async fn published(
    conn: &mut PgConnection,
    lane: Lane<'_>,
    number: i64,
    limit: i64,
) -> Result<Option<Vec<Job>>, Error> {
    // Asked first: an export that is published meanwhile may be found below.
    let last: Option<i64> = sqlx::query_scalar(
        "-- store.lanes.last_number
         select last_number from cdc_export.lanes where consumer_id = $1 and dataset = $2",
    )
    .bind(lane.consumer.as_str())
    .bind(lane.dataset)
    .fetch_optional(&mut *conn)
    .await?;
    let rows: Vec<JobRow> = sqlx::query_as(with_job_columns(include_str!("lanes/published.sql")))
        .bind(lane.consumer.as_str())
        .bind(lane.dataset)
        .bind(number)
        .bind(limit)
        .fetch_all(conn)
        .await?;
    let jobs: Vec<Job> = rows.into_iter().map(Job::try_from).collect::<Result<_, _>>()?;
    let found = jobs.iter().map(|job| job.number.and_then(|found| i64::try_from(found).ok()));
    let is_whole = found.eq((number + 1..).take(jobs.len()).map(Some));
    let expected = last.unwrap_or(0).saturating_sub(number).min(limit);
    Ok(Some(jobs).filter(|jobs| is_whole && jobs.len() as i64 >= expected))
}

/// Jobs that have not ended, or whose files have no names yet.
async fn under_way(conn: &mut PgConnection, lane: Lane<'_>) -> Result<Vec<Job>, Error> {
    let rows: Vec<JobRow> = sqlx::query_as(with_job_columns(include_str!("lanes/under_way.sql")))
        .bind(lane.consumer.as_str())
        .bind(lane.dataset)
        .bind(MAX_LISTED)
        .fetch_all(conn)
        .await?;
    rows.into_iter().map(Job::try_from).collect()
}
