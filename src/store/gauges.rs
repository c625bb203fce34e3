//! Reads the gauges of the metrics: the queue, the lag of consumers, and the size of the change log.
//!
//! A monitor reads the gauges often, so a statement reads only open jobs and watermarks.

use crate::job::unacknowledged::COUNTED_EXPORTS;
use crate::store::{Error, Store};
use cdc_manifest::ConsumerId;
use pg_session::pool::PoolUse;

/// The limit on consumers with a series of their own, for each metric.
pub const MAX_CONSUMERS: usize = 100;

#[derive(Clone, Copy, Debug, sqlx_macros::FromRow)]
pub struct Backlog {
    pub pending: i64,
    /// Jobs that clients see as processing.
    pub processing: i64,
    /// The part of `processing` that is committed and not published yet. The lanes of these jobs wait.
    pub unpublished: i64,
    /// Seconds since the oldest of these jobs was committed, or 0 if there is none.
    pub unpublished_seconds: f64,
    /// Seconds since the oldest pending job was submitted, or 0 if none is pending.
    pub oldest_seconds: f64,
    /// The rows of the change log, estimated from the statistics of Postgres.
    pub log_rows: i64,
    /// The bytes of the change log with its indexes.
    pub log_bytes: i64,
    /// Seconds since the oldest position was saved whose deletions are still in the change log.
    pub held_seconds: f64,
    /// The number of positions whose deletions were purged from the change log.
    pub given_up: i64,
}

#[derive(Clone, Debug)]
pub struct WatermarkAge {
    pub consumer: ConsumerId,
    pub dataset: String,
    /// Seconds since the time of the watermark, or 0 if that time is in the future.
    pub seconds: f64,
}

/// The unacknowledged exports of a consumer that acknowledges.
#[derive(Clone, Debug)]
pub struct UnacknowledgedAge {
    pub consumer: ConsumerId,
    pub dataset: String,
    /// The number of retained exports that are not acknowledged, up to [`COUNTED_EXPORTS`].
    pub exports: u64,
    /// Seconds since the oldest of these exports was published, or 0 if there is none.
    pub seconds: f64,
}

impl Store {
    pub async fn backlog(&self) -> Result<Backlog, Error> {
        let statement = sqlx::query_as(include_str!("gauges/backlog.sql"));
        self.with(async |conn| statement.fetch_one(conn).await).await
    }

    /// Returns the oldest watermarks in these datasets, up to a hundred, and the number of the others.
    pub async fn watermark_ages(&self, datasets: &[String]) -> Result<(Vec<WatermarkAge>, u64), Error> {
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
        // A row that was inserted by hand may have an id that is not valid for a consumer.
        let age = |(consumer, dataset, seconds, _): (String, String, f64, i64)| {
            Some(WatermarkAge { consumer: consumer.parse().ok()?, dataset, seconds })
        };
        let ages: Vec<_> = rows.into_iter().filter_map(age).collect();
        let others = all - ages.len() as u64;
        Ok((ages, others))
    }

    /// Returns the unacknowledged exports in these datasets, of up to a hundred consumers. The longest unacknowledged
    /// exports come first.
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

    pub fn pool_use(&self) -> PoolUse {
        self.pool.usage()
    }
}
