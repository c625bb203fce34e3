//! Watermarks: read for clients, moved by the commit of an export.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::job::ConsumerId;
use crate::store::{Error, Store};
use crate::watermark::{Position, Watermark};

impl Store {
    /// A consumer's watermark, if it has one.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn watermark(&self, consumer: &ConsumerId, dataset: &str) -> Result<Option<Watermark>, Error> {
        let mut conn = self.connection().await?;
        let time: Option<DateTime<Utc>> = sqlx::query_scalar(
            "-- store.watermarks.get
             select last_exported_at from watermarks
             where consumer_id = $1 and dataset = $2 and last_exported_at is not null",
        )
        .bind(consumer.as_str())
        .bind(dataset)
        .fetch_optional(conn.get())
        .await?;
        conn.give_back();
        Ok(time.map(|last_exported_at| Watermark {
            consumer: consumer.clone(),
            dataset: dataset.to_owned(),
            last_exported_at,
        }))
    }
}

/// Moves a watermark, if it still is what the export found when it began: version and time. False: it isn't.
pub(crate) async fn advance(
    conn: &mut PgConnection,
    consumer: &ConsumerId,
    dataset: &str,
    position: &Position,
    to: DateTime<Utc>,
) -> Result<bool, Error> {
    let moved = match position.version {
        None => sqlx::query(
            "-- store.watermarks.first
             insert into watermarks (consumer_id, dataset, last_exported_at, updated_at, version)
             values ($1, $2, $3, clock_timestamp(), 1)
             on conflict (consumer_id, dataset) do nothing",
        )
        .bind(consumer.as_str())
        .bind(dataset)
        .bind(to),
        Some(version) => sqlx::query(
            "-- store.watermarks.advance
             update watermarks set last_exported_at = $3, updated_at = clock_timestamp(), version = version + 1
             where consumer_id = $1 and dataset = $2 and version = $4 and last_exported_at is not distinct from $5",
        )
        .bind(consumer.as_str())
        .bind(dataset)
        .bind(to)
        .bind(version)
        .bind(position.last_exported_at),
    };
    Ok(moved.execute(conn).await?.rows_affected() == 1)
}
