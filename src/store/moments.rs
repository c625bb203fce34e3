//! Moments: when the database had which snapshot. They tell since when a change of the log is committed, so that no
//! writer has to.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;

use crate::store::{Error, Store};
use cdc_manifest::ConsumerId;
use pg_session::statement::with_pieces;

/// The changes of the log that a lane's exports don't have.
#[derive(Clone, Debug)]
pub struct LoggedChanges {
    pub consumer: ConsumerId,
    pub dataset: String,
    /// True if there are any, or if no triggers log them.
    pub exist: bool,
    /// The time for which the oldest one is committed, to within a second; of older ones, ten seconds or five minutes.
    /// The time since the last export, if no triggers log the changes. None: there is none, or nobody knows it.
    pub age: Option<Duration>,
}

impl Store {
    /// Records the database's snapshot, unless the log is where it was at the last moment. `sequence`: the log's latest
    /// sequence, which was read before. `since`: the time of a later look at which the log still was there; without it,
    /// the time at which a process last said that it is there.
    pub async fn record_moment(&self, sequence: i64, since: Option<DateTime<Utc>>) -> Result<(), Error> {
        let statement = sqlx::query(include_str!("moments/record.sql")).bind(since).bind(sequence);
        self.with(async |conn| statement.execute(conn).await).await.map(drop)
    }

    /// Removes most of the older moments, and those older than `age`. Without the present time, `now`, removes only
    /// those of another cluster.
    pub async fn thin_moments(&self, age: Duration, now: Option<DateTime<Utc>>) -> Result<(), Error> {
        let statement = sqlx::query(include_str!("moments/thin.sql")).bind(age.as_secs_f64()).bind(now);
        self.with(async |conn| statement.execute(conn).await).await.map(drop)
    }

    /// Returns the changes that wait for these lanes, by the log. Leaves out a lane that has no position in the log.
    pub async fn logged_changes(&self, consumers: &[&str], datasets: &[&str]) -> Result<Vec<LoggedChanges>, Error> {
        self.waiting(Some(consumers), datasets, consumers.len()).await
    }

    /// Returns the changes that wait for the lanes of these datasets whose last exports are the oldest.
    pub async fn oldest_logged_changes(&self, datasets: &[String], lanes: usize) -> Result<Vec<LoggedChanges>, Error> {
        let datasets: Vec<_> = datasets.iter().map(String::as_str).collect();
        self.waiting(None, &datasets, lanes).await
    }

    async fn waiting(
        &self,
        consumers: Option<&[&str]>,
        datasets: &[&str],
        lanes: usize,
    ) -> Result<Vec<LoggedChanges>, Error> {
        let committed = ("moments/committed.sql", include_str!("moments/committed.sql"));
        let statement = with_pieces(include_str!("moments/waiting.sql"), &[committed]);
        let statement = sqlx::query_as(AssertSqlSafe(statement)).bind(consumers).bind(datasets).bind(lanes as i64);
        let rows: Vec<(String, String, bool, Option<f64>)> =
            self.in_index_order(async |tx| statement.fetch_all(tx).await).await?;
        // A row that was inserted by hand may have an id that is not valid for a consumer.
        let changes = |(consumer, dataset, exist, seconds): (String, String, _, Option<f64>)| {
            let age = seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
            Some(LoggedChanges { consumer: consumer.parse().ok()?, dataset, exist, age })
        };
        Ok(rows.into_iter().filter_map(changes).collect())
    }
}
