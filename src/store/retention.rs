//! Finds and deletes the files and exports that are past the retention, and unused lanes and destinations.
//!
//! A retention counts in each lane; the ad-hoc exports of a dataset are one. Each call processes up to 1,000 lanes, and
//! the next call continues after them. So the cost of a call doesn't grow with the number of jobs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::QueryAs;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Postgres};
use uuid::Uuid;

use crate::file::FileRecord;
use crate::job::Retention;
use crate::store::files::FILE_COLUMNS;
use crate::store::{Error, Store};
use cdc_manifest::JobId;
use pg_session::statement::with_pieces;

/// The limit on rows of one statement, so that the first clean-up of many jobs doesn't hold locks for long.
const AT_ONCE: i64 = 1_000;

/// The limit on the newest jobs that one call counts, of all its lanes together. Counting them takes about 20 ms.
const COUNTED: u64 = 50_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retained {
    Files,
    /// Ended jobs, with or without a file.
    Jobs,
}

/// The limits of what is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub retention: Retention,
    /// The time after its publication for which an export is kept whose consumer acknowledges exports, and has not
    /// acknowledged this one.
    pub spare: Duration,
    /// The present time. `None`: no clock is believed, so nothing is too old, and what may be spared is.
    pub now: Option<DateTime<Utc>>,
}

/// A place among the lanes: the consumer, which is empty for ad-hoc exports, and the dataset. The default is before all
/// lanes.
pub type LaneCursor = (String, String);

/// The result of one call, for up to 1,000 lanes.
#[derive(Debug)]
pub struct RetentionPage<T> {
    /// The files or manifests, or the number of deleted rows.
    pub found: T,
    /// The place at which the next call begins: the same one if these lanes may have more. `None`: nothing is left.
    pub next: Option<LaneCursor>,
    /// The place behind these lanes. `None`: there are no more lanes.
    pub end: Option<LaneCursor>,
}

impl<T> RetentionPage<T> {
    /// Returns a page of `count` rows of the lanes from `after` to `end`.
    fn new(found: T, count: u64, after: &LaneCursor, end: Option<LaneCursor>) -> RetentionPage<T> {
        let next = if count < AT_ONCE as u64 { end.clone() } else { Some(after.clone()) };
        RetentionPage { found, next, end }
    }
}

/// A statement that reads what is past a retention, as rows of type `R`.
type PastStatement<R> = QueryAs<'static, Postgres, R, PgArguments>;

/// A CTE with the newest job of each lane that is past the retention of jobs.
const BOUNDS_OF_JOBS: (&str, &str) = ("retention/bounds_of_jobs.sql", include_str!("retention/bounds_of_jobs.sql"));

/// The files of the lanes in `bounds`, shared by the retention of files and that of jobs.
const FILES_IN_BOUNDS: (&str, &str) = ("retention/files_in_bounds.sql", include_str!("retention/files_in_bounds.sql"));

/// The condition that no acknowledgement of an export is awaited, which the statements above have twice.
const MAY_GO: (&str, &str) = ("retention/may_go.sql", include_str!("retention/may_go.sql"));

#[derive(Debug, sqlx_macros::FromRow)]
pub struct PastFile {
    #[sqlx(flatten)]
    pub record: FileRecord,
    /// The number of the export if its consumer acknowledges exports and has not acknowledged this one.
    pub unacknowledged: Option<i64>,
}

#[derive(Debug, sqlx_macros::FromRow)]
pub struct PastManifest {
    /// The files of its export, which are removed already.
    #[sqlx(flatten)]
    pub record: FileRecord,
    pub text: String,
}

impl Store {
    /// Returns manifests of this destination that are past the retention of jobs, the oldest of each lane first. Looks
    /// at the lanes after `after`.
    ///
    /// Omits manifests whose files still exist and all later ones of the lane, and those from the lane's newest full
    /// export on. So what is left of a lane has no gap.
    pub async fn manifests_past(
        &self,
        limits: &Limits,
        destination: Uuid,
        after: &LaneCursor,
    ) -> Result<RetentionPage<Vec<PastManifest>>, Error> {
        let statement = with_pieces(include_str!("retention/manifests_past.sql"), &[BOUNDS_OF_JOBS, FILE_COLUMNS]);
        self.read_past(statement, limits, destination, after, |statement| statement).await
    }

    /// Deletes the manifests of these exports, by job and dataset, from the database.
    pub async fn manifests_removed(&self, exports: &[(JobId, &str)]) -> Result<(), Error> {
        let (jobs, datasets): (Vec<_>, Vec<_>) = exports.iter().map(|(job, dataset)| (job.as_uuid(), *dataset)).unzip();
        // In one order, so that two processes that remove the same manifests don't wait for each other.
        let statement = sqlx::query(
            "-- store.retention.manifests_removed
             with removed as (
               select job, dataset from cdc_export.exports
               where (job, dataset) in (select * from unnest($1, $2)) and manifest is not null
               order by job, dataset for update)
             update cdc_export.exports e set manifest = null
             from removed where e.job = removed.job and e.dataset = removed.dataset",
        )
        .bind(jobs)
        .bind(datasets);
        self.execute(statement).await.map(drop)
    }

    /// Returns files of this destination that are past a retention: too old, or followed by too many newer files of
    /// their lane. Looks at the lanes after `after`.
    ///
    /// A retention of files counts the files at the destination. A retention of jobs counts all ended jobs. It also
    /// returns files of another database, which only the service of that database removes.
    ///
    /// The files of a job are returned together, when all of them are past the retention in their lanes. The later
    /// files of its other lanes are counted by the lanes' numbers, so they may include removed ones.
    ///
    /// Omits files that [`Limits::spare`] spares.
    pub async fn files_past(
        &self,
        limits: &Limits,
        retained: Retained,
        destination: Uuid,
        after: &LaneCursor,
    ) -> Result<RetentionPage<Vec<PastFile>>, Error> {
        let pieces = [BOUNDS_OF_JOBS, FILE_COLUMNS, FILES_IN_BOUNDS, MAY_GO];
        let statement = match retained {
            Retained::Files => with_pieces(include_str!("retention/files_past.sql"), &pieces[1..]),
            Retained::Jobs => with_pieces(include_str!("retention/files_of_jobs_past.sql"), &pieces),
        };
        let more = |statement: PastStatement<PastFile>| {
            statement.bind(limits.spare.as_secs_f64()).bind(retained == Retained::Files)
        };
        self.read_past(statement, limits, destination, after, more).await
    }

    /// Reads what is past a retention at this destination, in the lanes after `after`. `more` binds the parameters
    /// after the first seven.
    async fn read_past<R>(
        &self,
        statement: String,
        limits: &Limits,
        destination: Uuid,
        after: &LaneCursor,
        more: impl FnOnce(PastStatement<R>) -> PastStatement<R>,
    ) -> Result<RetentionPage<Vec<R>>, Error>
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let read = self.in_index_order(async |tx| {
            let (consumers, datasets, end) = lanes(tx, after, &limits.retention).await?;
            let statement = sqlx::query_as(AssertSqlSafe(statement))
                .bind(consumers)
                .bind(datasets)
                .bind(limits.retention.count.map(|count| count as i64))
                .bind(limits.retention.age.map(|age| age.as_secs_f64()))
                .bind(limits.now)
                .bind(destination)
                .bind(AT_ONCE);
            Ok::<(Vec<R>, _), Error>((more(statement).fetch_all(tx).await?, end))
        });
        let (found, end) = read.await?;
        let count = found.len() as u64;
        Ok(RetentionPage::new(found, count, after, end))
    }

    /// Deletes ended exports that are past the retention of jobs and have no file any more, the oldest first. Looks at
    /// the lanes after `after`. Returns the number of deleted exports. A job goes with its last export.
    ///
    /// Keeps the last published export of each lane, because the next one continues from it. Keeps exports that were
    /// published after one whose file still exists: a consumer that loaded that file last requests them. A destination
    /// that no process uses any more keeps no exports.
    ///
    /// Spares unacknowledged exports of a consumer that acknowledges for up to [`Limits::spare`], and for that time
    /// jobs with an open delivery. If `writes_manifests`, keeps an export until its manifest is removed. Keeps the
    /// exports of a job until all are published or given up, because the manifest of each says how many have files.
    pub async fn forget_jobs_past(
        &self,
        limits: &Limits,
        writes_manifests: bool,
        after: &LaneCursor,
    ) -> Result<RetentionPage<u64>, Error> {
        let forget_past = self.in_index_order(async |tx| {
            let (consumers, datasets, end) = lanes(tx, after, &limits.retention).await?;
            let statement = with_pieces(include_str!("retention/forget_jobs_past.sql"), &[BOUNDS_OF_JOBS]);
            let statement = sqlx::query(AssertSqlSafe(statement))
                .bind(consumers)
                .bind(datasets)
                .bind(limits.retention.count.map(|count| count as i64))
                .bind(limits.retention.age.map(|age| age.as_secs_f64()))
                .bind(limits.now)
                .bind(AT_ONCE)
                .bind(limits.spare.as_secs_f64())
                .bind(writes_manifests);
            Ok::<_, Error>((statement.execute(tx).await?.rows_affected(), end))
        });
        let (found, end) = forget_past.await?;
        Ok(RetentionPage::new(found, found, after, end))
    }

    /// Deletes lanes that have neither a job nor a watermark. Looks at the lanes after `after`. Returns their number.
    ///
    /// Keeps lanes that ever published an export, so that their numbers continue.
    pub async fn forget_lanes(&self, after: &LaneCursor) -> Result<RetentionPage<u64>, Error> {
        let forget_unused = self.in_index_order(async |tx| {
            let (consumers, datasets, end) = lanes(tx, after, &Retention::default()).await?;
            // A locked lane is about to get a job. A separate statement looks for jobs after the lock, so it sees every
            // job that was submitted before. A later submission waits for the lock, and then inserts the lane again.
            let unused: Vec<LaneCursor> = sqlx::query_as(include_str!("retention/unused_lanes.sql"))
                .bind(consumers)
                .bind(datasets)
                .fetch_all(&mut *tx)
                .await?;
            let (consumers, datasets): (Vec<_>, Vec<_>) = unused.into_iter().unzip();
            let forgotten = sqlx::query(
                "-- store.retention.forget_lanes
                 delete from cdc_export.lanes l using unnest($1::text[], $2::text[]) as unused (consumer_id, dataset)
                 where l.consumer_id = unused.consumer_id and l.dataset = unused.dataset
                   and not exists (
                     select from cdc_export.exports e where e.consumer_id = l.consumer_id and e.dataset = l.dataset)",
            )
            .bind(consumers)
            .bind(datasets)
            .execute(tx)
            .await?;
            Ok::<_, Error>((forgotten.rows_affected(), end))
        });
        let (found, end) = forget_unused.await?;
        Ok(RetentionPage { found, next: end.clone(), end })
    }

    /// Records that the files of these exports, by job and dataset, are removed. Returns those of which that was not
    /// recorded before.
    pub async fn files_removed(&self, exports: &[(JobId, &str)]) -> Result<Vec<(JobId, String)>, Error> {
        let (jobs, datasets): (Vec<_>, Vec<_>) = exports.iter().map(|(job, dataset)| (job.as_uuid(), *dataset)).unzip();
        // In one order, so that two processes that record the same exports don't wait for each other.
        let statement = sqlx::query_as(
            "-- store.retention.files_removed
             with removed as (
               select job, dataset from cdc_export.exports
               where (job, dataset) in (select * from unnest($1, $2))
                 and published_at is not null and file_removed_at is null
               order by job, dataset for update)
             update cdc_export.exports e set file_removed_at = clock_timestamp()
             from removed where e.job = removed.job and e.dataset = removed.dataset
             returning e.job, e.dataset",
        )
        .bind(jobs)
        .bind(datasets);
        let removed: Vec<(Uuid, String)> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        Ok(removed.into_iter().map(|(job, dataset)| (job.into(), dataset)).collect())
    }
}

/// Returns the consumers and the datasets of the lanes of this call, and the lane after which the next call continues.
async fn lanes(
    conn: &mut PgConnection,
    after: &LaneCursor,
    retention: &Retention,
) -> Result<(Vec<String>, Vec<String>, Option<LaneCursor>), Error> {
    let kept = retention.count.unwrap_or(0).min(COUNTED) as i64;
    let lanes: Vec<(String, String, bool)> = sqlx::query_as(include_str!("retention/lanes.sql"))
        .bind(&after.0)
        .bind(&after.1)
        .bind(kept)
        .bind(COUNTED as i64)
        .bind(AT_ONCE)
        .fetch_all(conn)
        .await?;
    let next = lanes.last().filter(|(_, _, has_more)| *has_more);
    let next = next.map(|(consumer, dataset, _)| (consumer.clone(), dataset.clone()));
    let (consumers, datasets) = lanes.into_iter().map(|(consumer, dataset, _)| (consumer, dataset)).unzip();
    Ok((consumers, datasets, next))
}
