//! Asks what there is to do now. An idle process sends one short statement a second, and a second one if a job is open.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::store::queue::{ORPHANED, READY, built_formats, longest_retry_pauses};
use crate::store::{Error, Store};
use pg_session::session_name;
use pg_session::statement::with_pieces;

/// The work that waits for a process. Each field may also be true for a moment although nothing waits.
#[derive(Debug, sqlx_macros::FromRow)]
pub struct DueWork {
    has_open: bool,
    #[sqlx(skip)]
    pub has_jobs: bool,
    /// A lease has ended, the session of a lease has ended, or a time lies too far in the future.
    pub has_lapsed: bool,
    /// A committed export has no final names yet.
    pub has_unpublished: bool,
    /// Something may have been committed that the change log has: call [`Store::record_moment`].
    pub log_has_moved: bool,
    pub log_sequence: i64,
    /// The time of this look by the database's clock.
    pub looked_at: DateTime<Utc>,
    /// The destinations that no process uses now.
    unused: Vec<Uuid>,
}

impl Store {
    /// Returns the work that waits for a process with these datasets and this destination. Its leases last for `lease`.
    ///
    /// Names the session after the destination, so that others see that a process uses it.
    pub async fn due(&self, datasets: &[String], destination: Option<Uuid>, lease: Duration) -> Result<DueWork, Error> {
        let abandoned = self.abandoned();
        let due = self.with::<_, sqlx::Error>(async |conn| {
            let statement = sqlx::query_as(AssertSqlSafe(with_pieces(include_str!("due/due.sql"), &[])))
                .bind(destination.map_or_else(session_name::of_process, session_name::of_destination))
                .bind(self.listeners.iter().map(|listener| &*listener.name).collect::<Vec<_>>());
            let mut due: DueWork = statement.fetch_one(&mut *conn).await?;
            if due.has_open {
                let pieces = [READY, ORPHANED];
                let statement = sqlx::query_as(AssertSqlSafe(with_pieces(include_str!("due/open.sql"), &pieces)))
                    .bind(built_formats())
                    .bind(datasets)
                    .bind(destination)
                    .bind(abandoned)
                    .bind(lease.as_secs_f64())
                    .bind(longest_retry_pauses());
                let (has_jobs, has_lapsed): (bool, bool) = statement.fetch_one(conn).await?;
                due = DueWork { has_jobs, has_lapsed: due.has_lapsed || has_lapsed, ..due };
            }
            Ok(due)
        });
        let due = due.await?;
        self.set_unused(&due.unused);
        Ok(due)
    }
}
