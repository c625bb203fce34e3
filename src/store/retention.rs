//! Retention: which files and which jobs are past what an operator wants kept.

use uuid::Uuid;

use crate::job::{JobId, Retention};
use crate::store::files::{FilePlace, PlaceRow, place_columns};
use crate::store::{Error, Store};

/// What one statement takes at most, so that the first clean-up of a year's jobs doesn't hold anybody up.
const BATCH: i64 = 1_000;

/// What a retention counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The files that are there.
    Files,
    /// The jobs that have ended, with a file or without.
    Jobs,
}

impl Store {
    /// Files of this folder that are past a retention: too old, or with too many newer ones of their consumer.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn files_past(&self, retention: &Retention, of: Of, store: Uuid) -> Result<Vec<FilePlace>, Error> {
        let mut conn = self.connection().await?;
        let rows: Vec<PlaceRow> = sqlx::query_as(concat!(
            "-- store.retention.files_past
             select ",
            place_columns!(),
            " from (
               select f.*, row_number() over (partition by f.consumer_id order by f.finished_at desc, f.id desc) as newest
               from exports f
               where f.finished_at is not null
                 and ($5 or f.status = 'completed' and f.published_at is not null and f.file_removed_at is null)) e
             where e.store_id = $1 and e.status = 'completed' and e.published_at is not null and e.file_removed_at is null
               and (e.newest > $2 or e.finished_at < clock_timestamp() - make_interval(secs => $3))
             limit $4"
        ))
        .bind(store)
        .bind(retention.count.map(|count| count as i64))
        .bind(retention.age.map(|age| age.as_secs_f64()))
        .bind(BATCH)
        .bind(of == Of::Jobs)
        .fetch_all(conn.get())
        .await?;
        conn.give_back();
        rows.into_iter().map(FilePlace::try_from).collect()
    }

    /// Forgets the jobs past the retention of jobs that have ended and have no file any more. Returns how many.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn forget_jobs_past(&self, retention: &Retention) -> Result<u64, Error> {
        let mut conn = self.connection().await?;
        let forgotten = sqlx::query(
            "-- store.retention.forget_jobs_past
             delete from exports where id in (
               select e.id from (
                 select f.id, f.status, f.finished_at, f.file_removed_at,
                   row_number() over (partition by f.consumer_id order by f.finished_at desc, f.id desc) as newest
                 from exports f where f.finished_at is not null) e
               where (e.status <> 'completed' or e.file_removed_at is not null)
                 and (e.newest > $1 or e.finished_at < clock_timestamp() - make_interval(secs => $2))
               limit $3)",
        )
        .bind(retention.count.map(|count| count as i64))
        .bind(retention.age.map(|age| age.as_secs_f64()))
        .bind(BATCH)
        .execute(conn.get())
        .await?;
        conn.give_back();
        Ok(forgotten.rows_affected())
    }

    /// Records that a job's file is gone. Idempotent.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn file_removed(&self, job: JobId) -> Result<(), Error> {
        let mut conn = self.connection().await?;
        sqlx::query(
            "-- store.retention.file_removed
             update exports set file_removed_at = clock_timestamp()
             where id = $1 and published_at is not null and file_removed_at is null",
        )
        .bind(job.as_uuid())
        .execute(conn.get())
        .await?;
        conn.give_back();
        Ok(())
    }
}
