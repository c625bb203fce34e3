//! Asks in one statement what there is to do now, so that an idle process sends one statement a second.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::connection::statement::with_pieces;
use crate::store::moments::{LATEST, MOVED};
use crate::store::queue::{CLAIMABLE, ORPHANED, READY, built_formats, longest_retry_pauses};
use crate::store::{Error, Store};

/// The work that waits for a process. Each field may also be true for a moment although nothing waits.
#[derive(Clone, Copy, Debug, sqlx_macros::FromRow)]
pub struct DueWork {
    /// A worker can claim a job.
    pub has_jobs: bool,
    /// A lease has ended, the session of a lease has ended, or a time lies too far in the future.
    pub has_lapsed: bool,
    /// A committed export has no final names yet.
    pub has_unpublished: bool,
    /// No process has recorded this destination in the last ten seconds.
    pub is_unannounced: bool,
    /// Something may have been committed that the change log has: call [`Store::record_moment`].
    pub log_has_moved: bool,
    /// The latest sequence of the change log.
    pub log_sequence: i64,
    /// The time of this look by the database's clock.
    pub looked_at: DateTime<Utc>,
}

impl Store {
    /// Returns the work that waits for a process with these datasets and this destination. Its leases last for `lease`.
    pub async fn due(&self, datasets: &[String], destination: Option<Uuid>, lease: Duration) -> Result<DueWork, Error> {
        let statement = sqlx::query_as(AssertSqlSafe(with_pieces(
            include_str!("due/due.sql"),
            &[CLAIMABLE, READY, ORPHANED, MOVED, LATEST],
        )))
        .bind(built_formats())
        .bind(datasets)
        .bind(destination)
        .bind(self.known_scan_start())
        .bind(lease.as_secs_f64())
        .bind(longest_retry_pauses())
        .bind(self.receivers());
        self.with(async |conn| statement.fetch_one(conn).await).await
    }
}
