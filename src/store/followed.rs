//! Jobs that clients follow, as they stand.

use crate::job::{Job, JobId};
use crate::store::jobs::{JobRow, job_columns};
use crate::store::{Error, Store};

impl Store {
    /// These jobs, those of them that there are, in one statement.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn followed(&self, ids: &[JobId]) -> Result<Vec<Job>, Error> {
        let mut conn = self.connection().await?;
        let ids: Vec<_> = ids.iter().map(|id| id.as_uuid()).collect();
        let rows: Vec<JobRow> = sqlx::query_as(concat!(
            "-- store.followed.look\n select ",
            job_columns!(),
            " from exports e where e.id = any ($1)"
        ))
        .bind(ids)
        .fetch_all(conn.get())
        .await?;
        conn.give_back();
        rows.into_iter().map(Job::try_from).collect()
    }
}
