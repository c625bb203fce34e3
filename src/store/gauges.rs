//! The gauges that a scrape of the metrics shows: the queue, how far behind consumers are, the size of the change log.
//!
//! A monitor reads them again and again, so a statement reads no more than the open jobs and the watermarks.

use crate::job::ConsumerId;
use crate::job::lane::COUNTED_EXPORTS;
use crate::store::{Error, Store};
use crate::telemetry::metrics::PoolUse;

/// The number of consumers that have a series of their own, of each kind.
const MAX_CONSUMERS: usize = 100;

/// The queue and the change log.
#[derive(Clone, Copy, Debug, sqlx_macros::FromRow)]
pub struct Backlog {
    /// Jobs that no worker has.
    pub pending: i64,
    /// Jobs that clients see as processing.
    pub processing: i64,
    /// The jobs among these that are committed and whose files have no names yet: their lanes wait.
    pub unpublished: i64,
    /// Seconds since the oldest of these was committed; 0 where there is none.
    pub unpublished_seconds: f64,
    /// Seconds since the oldest pending job was submitted; 0 where none is pending.
    pub oldest_seconds: f64,
    /// Rows of the change log, by Postgres's statistics.
    pub log_rows: i64,
    /// Bytes of the change log with its indexes.
    pub log_bytes: i64,
    /// Rows logged since the position that is furthest behind, of those whose deletions the log still holds.
    pub held_rows: i64,
    /// Seconds since the oldest of these positions was saved.
    pub held_seconds: f64,
    /// Positions that the log was purged past.
    pub given_up: i64,
}

/// The distance of a consumer from the newest rows.
#[derive(Clone, Debug)]
pub struct WatermarkAge {
    /// The consumer.
    pub consumer: ConsumerId,
    /// The dataset's name.
    pub dataset: String,
    /// Seconds since the time that its watermark names; 0 if that time is still to come.
    pub seconds: f64,
}

/// The exports that an acknowledging consumer has yet to acknowledge.
#[derive(Clone, Debug)]
pub struct UnacknowledgedAge {
    /// The consumer.
    pub consumer: ConsumerId,
    /// The dataset's name.
    pub dataset: String,
    /// So many exports, of those that are kept; [`COUNTED_EXPORTS`] at most.
    pub exports: u64,
    /// Seconds since the oldest of them was published; 0 if there is none.
    pub seconds: f64,
}

impl Store {
    /// Counts the jobs that wait.
    pub async fn backlog(&self) -> Result<Backlog, Error> {
        let statement = sqlx::query_as(include_str!("gauges/backlog.sql"));
        self.with(async |conn| statement.fetch_one(conn).await).await
    }

    /// The watermarks furthest behind in these datasets, a hundred at most, and how many there are beside them.
    pub async fn watermark_ages(&self, datasets: &[&str]) -> Result<(Vec<WatermarkAge>, u64), Error> {
        let statement = sqlx::query_as(
            "-- store.gauges.watermark_ages
             select consumer_id, dataset, greatest(extract(epoch from clock_timestamp() - last_exported_at), 0)::float8,
               count(*) over ()
             from watermarks where last_exported_at is not null and dataset = any($1)
             order by last_exported_at limit $2",
        )
        .bind(datasets)
        .bind(MAX_CONSUMERS as i64);
        let rows: Vec<(String, String, f64, i64)> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        let all = rows.first().map_or(0, |(.., all)| all.unsigned_abs());
        // A row that was inserted by hand may have an id that no consumer can have.
        let age = |(consumer, dataset, seconds, _): (String, String, f64, i64)| {
            Some(WatermarkAge { consumer: consumer.parse().ok()?, dataset, seconds })
        };
        let ages: Vec<_> = rows.into_iter().filter_map(age).collect();
        let others = all - ages.len() as u64;
        Ok((ages, others))
    }

    /// Returns the unacknowledged exports in these datasets, by the hundred consumers that have not for the longest.
    pub async fn unacknowledged_ages(&self, datasets: &[&str]) -> Result<Vec<UnacknowledgedAge>, Error> {
        let statement = sqlx::query_as(include_str!("gauges/unacknowledged_ages.sql"))
            .bind(datasets)
            .bind(MAX_CONSUMERS as i64)
            .bind(COUNTED_EXPORTS as i64);
        let rows: Vec<(String, String, i64, f64)> =
            self.in_index_order(async |tx| statement.fetch_all(tx).await).await?;
        let age = |(consumer, dataset, exports, seconds): (String, String, i64, f64)| {
            Some(UnacknowledgedAge {
                consumer: consumer.parse().ok()?,
                dataset,
                exports: exports.unsigned_abs(),
                seconds,
            })
        };
        Ok(rows.into_iter().filter_map(age).collect())
    }

    /// Returns the use of the pool's connections.
    pub fn pool_use(&self) -> PoolUse {
        let Store { pool, .. } = self;
        PoolUse { open: pool.size(), idle: pool.num_idle() as u32, most: pool.options().get_max_connections() }
    }
}
