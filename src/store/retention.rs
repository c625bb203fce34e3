//! Finds and deletes the files and jobs that are past the retention, and unused lanes and destinations.
//!
//! Each call processes a few hundred consumers, and the next call continues after them. So the cost of a call doesn't
//! grow with the number of jobs.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::connection::statement::with_pieces;
use crate::file::FileRecord;
use crate::job::{JobId, Retention};
use crate::store::files::{FILE_COLUMNS, FileRow};
use crate::store::{Error, Store};

/// The limit on rows of one statement, so that the first clean-up of many jobs doesn't hold locks for long.
const BATCH: i64 = 1_000;

/// The limit on the newest jobs that one call counts, of all its consumers together. Counting them takes about 20 ms.
const COUNTED: u64 = 50_000;

/// The objects that a retention counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retained {
    /// Files that are at the destination.
    Files,
    /// Ended jobs, with or without a file.
    Jobs,
}

/// The consumers, or lanes, after which the next calls of this process begin. Empty means from the beginning.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    files: Mutex<String>,
    files_of_jobs: Mutex<String>,
    jobs: Mutex<String>,
    lanes: Mutex<(String, String)>,
}

/// A CTE with the newest job of each consumer that is past the retention of jobs.
const BOUNDS_OF_JOBS: (&str, &str) = ("retention/bounds_of_jobs.sql", include_str!("retention/bounds_of_jobs.sql"));

/// The files of the consumers in `bounds`, shared by the retention of files and that of jobs.
const FILES_IN_BOUNDS: (&str, &str) = ("retention/files_in_bounds.sql", include_str!("retention/files_in_bounds.sql"));

/// A file that is past a retention.
#[derive(Debug)]
pub struct PastFile {
    /// The file.
    pub record: FileRecord,
    /// The number of the export if its consumer acknowledges exports and has not acknowledged this one.
    pub unacknowledged: Option<u64>,
}

#[derive(sqlx_macros::FromRow)]
struct PastRow {
    #[sqlx(flatten)]
    file: FileRow,
    unacknowledged: Option<i64>,
}

impl TryFrom<PastRow> for PastFile {
    type Error = Error;

    fn try_from(PastRow { file, unacknowledged }: PastRow) -> Result<PastFile, Error> {
        Ok(PastFile { record: file.try_into()?, unacknowledged: unacknowledged.map(i64::unsigned_abs) })
    }
}

impl Store {
    /// Returns files of this destination that are past a retention: too old, or followed by too many newer files of
    /// their consumer.
    ///
    /// A retention of files counts the files at the destination. A retention of jobs counts all ended jobs. It also
    /// returns files of another database, which only the service of that database removes.
    ///
    /// Omits files that were published less than `spare` ago and that an acknowledging consumer has not acknowledged.
    pub async fn files_past(
        &self,
        retention: &Retention,
        retained: Retained,
        spare: Duration,
        destination: Uuid,
    ) -> Result<Vec<PastFile>, Error> {
        let pieces = [BOUNDS_OF_JOBS, FILE_COLUMNS, FILES_IN_BOUNDS];
        let (cursor, statement) = match retained {
            Retained::Files => {
                (&self.cursors.files, with_pieces(include_str!("retention/files_past.sql"), &pieces[1..]))
            }
            Retained::Jobs => {
                (&self.cursors.files_of_jobs, with_pieces(include_str!("retention/files_of_jobs_past.sql"), &pieces))
            }
        };
        let read_past = self.in_index_order(async |tx| {
            let (consumers, next) = consumers(tx, &read_cursor(cursor), retention).await?;
            let statement = sqlx::query_as(AssertSqlSafe(statement))
                .bind(consumers)
                .bind(retention.count.map(|count| count as i64))
                .bind(retention.age.map(|age| age.as_secs_f64()))
                .bind(destination)
                .bind(BATCH)
                .bind(spare.as_secs_f64())
                .bind(retained == Retained::Files);
            Ok::<(Vec<PastRow>, _), Error>((statement.fetch_all(tx).await?, next))
        });
        let (rows, next) = read_past.await?;
        set_cursor(cursor, next);
        rows.into_iter().map(PastFile::try_from).collect()
    }

    /// Deletes ended jobs that are past the retention of jobs and have no file any more, the oldest first. Returns
    /// their number.
    ///
    /// Keeps the last published job of each lane, because the next export continues from it. Keeps jobs that were
    /// published after a job whose file still exists: a consumer that loaded that file last requests them. A
    /// destination that no process uses any more keeps no jobs.
    ///
    /// Spares unacknowledged exports as in [`files_past`](Store::files_past), and for the same time jobs with an open
    /// delivery.
    pub async fn forget_jobs_past(&self, retention: &Retention, spare: Duration) -> Result<u64, Error> {
        let cursor = &self.cursors.jobs;
        let forget_past = self.in_index_order(async |tx| {
            let (consumers, next) = consumers(tx, &read_cursor(cursor), retention).await?;
            let statement = with_pieces(include_str!("retention/forget_jobs_past.sql"), &[BOUNDS_OF_JOBS]);
            let statement = sqlx::query(AssertSqlSafe(statement))
                .bind(consumers)
                .bind(retention.count.map(|count| count as i64))
                .bind(retention.age.map(|age| age.as_secs_f64()))
                .bind(BATCH)
                .bind(spare.as_secs_f64());
            Ok::<_, Error>((statement.execute(tx).await?, next))
        });
        let (forgotten, next) = forget_past.await?;
        set_cursor(cursor, next);
        Ok(forgotten.rows_affected())
    }

    /// Deletes lanes that have neither a job nor a watermark. Returns their number.
    ///
    /// Keeps lanes that ever published an export, so that their numbers continue.
    pub async fn forget_lanes(&self) -> Result<u64, Error> {
        let cursor = &self.cursors.lanes;
        let after = read_cursor(cursor);
        let forget_unused = self.in_index_order(async |tx| {
            let next: Option<(String, String)> = sqlx::query_as(
                "-- store.retention.lanes
             select consumer_id, dataset from cdc_export.lanes where (consumer_id, dataset) > ($1, $2)
             order by consumer_id, dataset offset $3 - 1 limit 1",
            )
            .bind(&after.0)
            .bind(&after.1)
            .bind(BATCH)
            .fetch_optional(&mut *tx)
            .await?;
            // A locked lane is about to get a job. A separate statement looks for jobs after the lock, so it sees every
            // job that was submitted before. A later submission waits for the lock, and then inserts the lane again.
            let unused: Vec<(String, String)> = sqlx::query_as(
                "-- store.retention.lock_lanes
             select consumer_id, dataset from cdc_export.lanes l
             where (consumer_id, dataset) > ($1, $2) and ($3::text is null or (consumer_id, dataset) <= ($3, $4))
               and last_number = 0
               and consumer_id <> '' -- Exports without a consumer have one such lane for each dataset.
               and not exists (select from exports e where e.consumer_id = l.consumer_id and e.dataset = l.dataset)
               and not exists (select from watermarks w where w.consumer_id = l.consumer_id and w.dataset = l.dataset)
             for update skip locked",
            )
            .bind(&after.0)
            .bind(&after.1)
            .bind(next.as_ref().map(|(consumer, _)| consumer))
            .bind(next.as_ref().map(|(_, dataset)| dataset))
            .fetch_all(&mut *tx)
            .await?;
            let (consumers, datasets): (Vec<_>, Vec<_>) = unused.into_iter().unzip();
            let forgotten = sqlx::query(
                "-- store.retention.forget_lanes
             delete from cdc_export.lanes l using unnest($1::text[], $2::text[]) as unused (consumer_id, dataset)
             where l.consumer_id = unused.consumer_id and l.dataset = unused.dataset
               and not exists (select from exports e where e.consumer_id = l.consumer_id and e.dataset = l.dataset)",
            )
            .bind(consumers)
            .bind(datasets)
            .execute(tx)
            .await?;
            Ok::<_, Error>((forgotten, next))
        });
        let (forgotten, next) = forget_unused.await?;
        set_cursor(cursor, next.unwrap_or_default());
        Ok(forgotten.rows_affected())
    }

    /// Deletes the destinations that no process has used for a day. Jobs stop waiting for such a destination after one
    /// minute.
    pub async fn forget_destinations(&self) -> Result<(), Error> {
        let statement = sqlx::query(
            "-- store.retention.forget_destinations
             delete from cdc_export.destinations where seen_at < clock_timestamp() - interval '1 day'",
        );
        self.execute(statement).await.map(drop)
    }

    /// Records that the files of a job are removed. Returns false if that was recorded before.
    pub async fn file_removed(&self, job: JobId) -> Result<bool, Error> {
        let statement = sqlx::query(
            "-- store.retention.file_removed
             update exports set file_removed_at = clock_timestamp()
             where id = $1 and published_at is not null and file_removed_at is null
             returning cdc_export.audit($2, 'remove_file', consumer_id, dataset, id)",
        )
        .bind(job.as_uuid())
        .bind(self.origin());
        Ok(self.execute(statement).await? == 1)
    }
}

/// Returns the position of a cursor.
fn read_cursor<T: Clone>(cursor: &Mutex<T>) -> T {
    cursor.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Sets the position of a cursor.
fn set_cursor<T>(cursor: &Mutex<T>, next: T) {
    *cursor.lock().unwrap_or_else(PoisonError::into_inner) = next;
}

/// Returns the consumers of this call, and the consumer after which the next call continues.
///
/// Every call includes the ad-hoc exports, under the empty name.
async fn consumers(
    conn: &mut PgConnection,
    after: &str,
    retention: &Retention,
) -> Result<(Vec<String>, String), Error> {
    let limit = (COUNTED / (retention.count.unwrap_or(0).saturating_add(1))).clamp(1, BATCH as u64) as i64;
    let mut consumers: Vec<String> = sqlx::query_scalar(
        "-- store.retention.consumers
         select distinct consumer_id from cdc_export.lanes where consumer_id > $1 order by consumer_id limit $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    let is_last = (consumers.len() as i64) < limit;
    let next = consumers.last().filter(|_| !is_last).cloned().unwrap_or_default();
    consumers.push(String::new());
    Ok((consumers, next))
}
