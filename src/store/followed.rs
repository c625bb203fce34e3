//! The present state of the jobs that clients follow.

use crate::job::{Job, JobId};
use crate::store::job_row::{JobRow, job_columns};
use crate::store::{Error, Store};
use crate::telemetry::chain;

impl Store {
    /// These jobs, in one statement; without those that don't exist, and those that this version can't read.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn followed(&self, ids: &[JobId]) -> Result<Vec<Job>, Error> {
        let ids: Vec<_> = ids.iter().map(|id| id.as_uuid()).collect();
        let statement = sqlx::query_as(concat!(
            "-- store.followed.look\n select ",
            job_columns!(),
            " from exports e where e.id = any ($1)"
        ))
        .bind(ids);
        let rows: Vec<JobRow> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        let read = |row: JobRow| {
            let job = Job::try_from(row);
            // A newer version may have written it: no reason to lose the others.
            job.inspect_err(|error| tracing::warn!(event = "job_unreadable", error = chain(error))).ok()
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }
}
