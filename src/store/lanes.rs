//! A lane in its order: its published exports by their numbers, what of it is under way, and whether a caller that says what it loaded
//! last stands where the lane does.

use sqlx::{Connection, PgConnection};

use crate::job::lane::Lane;
use crate::job::{After, Job, JobId};
use crate::store::jobs::{JobRow, job_columns};
use crate::store::{Error, Store, by_index};

/// So many jobs of each kind are named to a caller that is elsewhere than its lane.
const MOST_NAMED: i64 = 100;

/// Why a caller doesn't stand where its lane does.
#[derive(Debug)]
pub enum Elsewhere {
    /// The database doesn't know what the caller loaded, or not with that content.
    Unknown,
    /// The lane has gone on: the exports that were published since, a hundred at most, then those under way, in the lane's order.
    GoneOn(Vec<Job>),
}

impl Store {
    /// The published exports of a lane after this one of its jobs, `limit` of them at most, by their numbers and from after the number
    /// `from`, where that is said. `None`: no completed export of the lane has this id.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn published_after(
        &self,
        lane: Lane<'_>,
        after: JobId,
        from: Option<u64>,
        limit: u32,
    ) -> Result<Option<Vec<Job>>, Error> {
        let mut conn = self.connection().await?;
        let mut tx = conn.get().begin().await?;
        by_index(&mut tx).await?;
        let jobs = match known(&mut tx, lane, after, None).await? {
            None => None,
            Some(number) => {
                let from = from.and_then(|from| i64::try_from(from).ok()).map_or(number, |from| from.max(number));
                Some(published(&mut tx, lane, from, i64::from(limit)).await?)
            }
        };
        tx.commit().await?;
        conn.give_back();
        Ok(jobs)
    }
}

/// Where the lane stands, if the caller stands elsewhere. The lane's row must be locked: nothing is published meanwhile.
pub(super) async fn elsewhere(
    conn: &mut PgConnection,
    lane: Lane<'_>,
    after: &After,
) -> Result<Option<Elsewhere>, Error> {
    let number = match after {
        After::Nothing => Some(0),
        After::Export { job, sha256 } => known(conn, lane, *job, sha256.as_deref()).await?,
    };
    let Some(number) = number else { return Ok(Some(Elsewhere::Unknown)) };
    let mut jobs = published(conn, lane, number, MOST_NAMED).await?;
    jobs.extend(under_way(conn, lane).await?);
    Ok(Some(jobs).filter(|jobs| !jobs.is_empty()).map(Elsewhere::GoneOn))
}

/// The number of a completed export; the lane's last one, if it is yet to get its own. `None`: there is none of this id in the lane, or
/// its file was another one.
async fn known(
    conn: &mut PgConnection,
    lane: Lane<'_>,
    job: JobId,
    sha256: Option<&str>,
) -> Result<Option<i64>, Error> {
    let number = sqlx::query_scalar(
        "-- store.lanes.known
         select coalesce(e.number, l.last_number) from exports e
         join cdc_export.lanes l on l.consumer_id = e.consumer_id and l.dataset = e.dataset
         where e.id = $1 and e.consumer_id = $2 and e.dataset = $3 and e.status = 'completed' and ($4::text is null or e.sha256 = $4)",
    )
    .bind(job.as_uuid())
    .bind(lane.consumer.as_str())
    .bind(lane.dataset)
    .bind(sha256)
    .fetch_optional(conn)
    .await?;
    Ok(number)
}

/// The exports behind this number.
async fn published(conn: &mut PgConnection, lane: Lane<'_>, number: i64, limit: i64) -> Result<Vec<Job>, Error> {
    let rows: Vec<JobRow> = sqlx::query_as(concat!(
        "-- store.lanes.published\n select ",
        job_columns!(),
        " from exports e where e.consumer_id = $1 and e.dataset = $2 and e.number > $3 order by e.number limit $4"
    ))
    .bind(lane.consumer.as_str())
    .bind(lane.dataset)
    .bind(number)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Job::try_from).collect()
}

/// Jobs that have not ended, or whose files have no names yet.
async fn under_way(conn: &mut PgConnection, lane: Lane<'_>) -> Result<Vec<Job>, Error> {
    let rows: Vec<JobRow> = sqlx::query_as(concat!(
        "-- store.lanes.under_way\n select ",
        job_columns!(),
        " from (
             select id from exports where consumer_id = $1 and dataset = $2 and status in ('pending', 'processing')
             union all
             select id from exports where consumer_id = $1 and dataset = $2 and status = 'completed' and published_at is null) open
           join exports e on e.id = open.id
           order by e.lane_seq limit $3"
    ))
    .bind(lane.consumer.as_str())
    .bind(lane.dataset)
    .bind(MOST_NAMED)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Job::try_from).collect()
}
