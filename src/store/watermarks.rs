//! Reads and removes watermarks for clients, and moves them in the commit of an export.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgArguments;
use sqlx::postgres::types::Oid;
use sqlx::query::Query;
use sqlx::types::Json;
use sqlx::{PgConnection, Postgres};

use crate::job::Bounds;
use crate::store::{Error, Store};
use cdc_capture::{NewPosition, Position};
use cdc_manifest::{ConsumerId, JobId, Lane};
use pg_rows::export_type::ExportType;

/// The pattern of the ids that a consumer may have. A row with another id was inserted by hand and belongs to no
/// consumer.
const CONSUMER: &str = "^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$";
/// The pattern of the names that a dataset may have.
const DATASET: &str = "^[a-z][a-z0-9_-]{0,62}$";

/// A consumer's position in a dataset, without the parts that require reading the table.
#[derive(Clone, Debug)]
pub struct ConsumerPosition {
    pub consumer: ConsumerId,
    pub dataset: String,
    /// The watermark, if the position has one.
    pub last_exported_at: Option<DateTime<Utc>>,
    /// True if the database has a position or a watermark. The consumer may only have asked for an export yet.
    pub is_saved: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatermarkRemoval {
    Done,
    /// The watermark stays, because an export of that consumer is being committed.
    Committing,
}

impl Store {
    pub async fn watermark(&self, lane: Lane<'_>) -> Result<Option<DateTime<Utc>>, Error> {
        let statement = sqlx::query_scalar(
            "-- store.watermarks.get
             select last_exported_at from watermarks
             where consumer_id = $1 and dataset = $2 and last_exported_at is not null",
        )
        .bind(lane.consumer.as_str())
        .bind(lane.dataset);
        self.with(async |conn| statement.fetch_optional(conn).await).await
    }

    /// Returns up to `limit` positions, by consumer and dataset, of all consumers that have a watermark or ever
    /// requested an export.
    ///
    /// With `after`, returns only positions after that lane. Returns only positions within the bounds.
    pub async fn positions(
        &self,
        after: Option<Lane<'_>>,
        bounds: &Bounds,
        limit: u32,
    ) -> Result<Vec<ConsumerPosition>, Error> {
        // Without a lane, the page starts before every name. Without consumers, one range covers all names.
        let (consumer, dataset) = after.map_or(("", ""), |lane| (lane.consumer.as_str(), lane.dataset));
        let consumers = bounds.consumers.as_ref().map(|ids| ids.iter().map(ConsumerId::as_str).collect::<Vec<_>>());
        let (first, last) = consumers.map_or((vec![""], vec!["~"]), |ids| (ids.clone(), ids));
        let statement = sqlx::query_as(include_str!("watermarks/positions.sql"))
            .bind(consumer)
            .bind(dataset)
            .bind(i64::from(limit))
            .bind(first)
            .bind(last)
            .bind(CONSUMER)
            .bind(DATASET)
            .bind(bounds.datasets.as_deref());
        let rows: Vec<(String, String, Option<DateTime<Utc>>, bool)> =
            self.in_index_order(async |tx| statement.fetch_all(tx).await).await?;
        let position = |(consumer, dataset, last_exported_at, is_saved): (String, String, _, _)| {
            Some(ConsumerPosition { consumer: consumer.parse().ok()?, dataset, last_exported_at, is_saved })
        };
        Ok(rows.into_iter().filter_map(position).collect())
    }

    /// Returns true if a consumer had no watermark and no job before this one. Looks only in `datasets`, if given.
    pub async fn is_new_consumer(
        &self,
        consumer: &ConsumerId,
        job: JobId,
        datasets: Option<&[String]>,
    ) -> Result<bool, Error> {
        let statement = sqlx::query_scalar(include_str!("watermarks/is_new_consumer.sql"))
            .bind(consumer.as_str())
            .bind(job.as_uuid())
            .bind(datasets);
        self.with(async |conn| statement.fetch_one(conn).await).await
    }

    /// Deletes a consumer's watermark, if it has one. The next export of the consumer starts from the beginning.
    pub async fn forget_watermark(&self, lane: Lane<'_>) -> Result<WatermarkRemoval, Error> {
        let removed = self.transaction(async |tx| {
            // The commit of an export holds the row's lock. A removal after that commit would undo it.
            sqlx::query("-- store.watermarks.timeout\n set local lock_timeout = '500ms'").execute(&mut *tx).await?;
            let statement = sqlx::query(
                "-- store.watermarks.forget
                 with forgotten as (
                   delete from watermarks where consumer_id = $1 and dataset = $2 returning consumer_id, dataset)
                 update cdc_export.lanes l set removed_number = l.last_number
                 from forgotten
                 where l.consumer_id = forgotten.consumer_id and l.dataset = forgotten.dataset",
            );
            statement.bind(lane.consumer.as_str()).bind(lane.dataset).execute(tx).await
        });
        match removed.await {
            Ok(_) => Ok(WatermarkRemoval::Done),
            Err(Error::LockConflict(_)) => Ok(WatermarkRemoval::Committing),
            Err(error) => Err(error),
        }
    }

    /// Deletes a consumer's positions in these datasets, or in all. Its lanes are in no list until its next job.
    /// The lanes keep their counters, so that no number and no place comes again.
    pub async fn remove_consumer(
        &self,
        consumer: &ConsumerId,
        datasets: Option<&[String]>,
    ) -> Result<ConsumerRemoval, Error> {
        self.transaction(async |tx| {
            // Whoever adds a job locks its lane.
            let lock = sqlx::query_scalar(
                "-- store.watermarks.lock_lanes
                 select dataset from cdc_export.lanes
                 where consumer_id = $1 and ($2::text[] is null or dataset = any ($2)) order by dataset for update",
            );
            let locked: Vec<String> = lock.bind(consumer.as_str()).bind(datasets).fetch_all(&mut *tx).await?;
            let found = sqlx::query_as(include_str!("watermarks/consumer.sql"));
            let (is_known, is_open) = found.bind(consumer.as_str()).bind(datasets).fetch_one(&mut *tx).await?;
            match (is_known, is_open) {
                (_, true) => return Ok(ConsumerRemoval::Open),
                (false, _) => return Ok(ConsumerRemoval::Unknown),
                (true, false) => {}
            }
            let remove = sqlx::query(include_str!("watermarks/remove_consumer.sql"));
            remove.bind(consumer.as_str()).bind(datasets).bind(locked).execute(tx).await?;
            Ok::<_, Error>(ConsumerRemoval::Done)
        })
        .await
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumerRemoval {
    Done,
    Unknown,
    /// It has a job that has not ended.
    Open,
}

/// The change that a commit makes to a consumer's position in a dataset.
pub(crate) struct Advance<'a> {
    pub(crate) lane: Lane<'a>,
    pub(crate) export_type: ExportType,
    pub(crate) position: &'a Position,
    pub(crate) new_position: &'a NewPosition,
    /// The new watermark. `None` if no exported row had a time that can be a watermark.
    pub(crate) to: Option<DateTime<Utc>>,
}

impl Advance<'_> {
    /// Returns the snapshot up to which deletions are delivered.
    fn deletions(&self) -> Option<&String> {
        // An incremental export delivers no deletions, so the deletions since the last delta or full export stay due.
        match (self.export_type, &self.position.deletions) {
            (ExportType::Incremental, Some(due)) if self.new_position.snapshot.is_some() => Some(due),
            _ => self.new_position.snapshot.as_ref(),
        }
    }
}

/// Moves positions of one consumer. Returns false if the version or the watermark of one changed since the export
/// began.
pub(crate) async fn advance(conn: &mut PgConnection, advances: &[Advance<'_>]) -> Result<bool, Error> {
    let (first, later): (Vec<_>, Vec<_>) = advances.iter().partition(|advance| advance.position.version.is_none());
    let first_moved = write(conn, sqlx::query(include_str!("watermarks/first.sql")), &first).await?;
    Ok(first_moved && write(conn, sqlx::query(include_str!("watermarks/advance.sql")), &later).await?)
}

/// Runs a statement that moves these positions. Returns true if it moved each.
async fn write(
    conn: &mut PgConnection,
    statement: Query<'_, Postgres, PgArguments>,
    advances: &[&Advance<'_>],
) -> Result<bool, Error> {
    let Some(consumer) = advances.first().map(|advance| advance.lane.consumer) else { return Ok(true) };
    fn each<'a, T>(advances: &[&'a Advance<'a>], value: impl Fn(&'a Advance<'a>) -> T) -> Vec<T> {
        advances.iter().map(|advance| value(advance)).collect()
    }
    let moved = statement
        .bind(consumer.as_str())
        .bind(each(advances, |advance| advance.lane.dataset))
        .bind(each(advances, |advance| advance.to))
        .bind(each(advances, |advance| advance.position.version))
        .bind(each(advances, |advance| advance.position.last_exported_at))
        .bind(each(advances, |advance| advance.new_position.snapshot.as_deref()))
        .bind(each(advances, |advance| advance.deletions().map(String::as_str)))
        .bind(each(advances, |advance| Oid(advance.new_position.table.table_oid)))
        .bind(each(advances, |advance| advance.new_position.table.relfilenode.map(Oid)))
        .bind(each(advances, |advance| advance.new_position.table.table_columns_hash.as_str()))
        .bind(each(advances, |advance| advance.new_position.table.cluster_id))
        .bind(each(advances, |advance| advance.export_type.as_str()))
        .bind(each(advances, |advance| advance.new_position.table.definition.as_str()))
        .bind(each(advances, |advance| Json(&advance.new_position.table.types)))
        .bind(each(advances, |advance| Json(&advance.new_position.table.guard_state)))
        .execute(conn)
        .await?;
    Ok(moved.rows_affected() == advances.len() as u64)
}
