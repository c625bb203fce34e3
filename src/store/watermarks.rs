//! Watermarks: read for clients, moved by the commit of an export.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgArguments;
use sqlx::postgres::types::Oid;
use sqlx::query::Query;
use sqlx::types::Json;
use sqlx::{PgConnection, Postgres};

use crate::job::lane::Lane;
use crate::job::{ConsumerId, ExportType};
use crate::store::{Error, Store};
use crate::watermark::{NewPosition, Position, Watermark};

/// Ids that a consumer and a dataset may have. A row with another id was inserted by hand, and belongs to no consumer.
const CONSUMER: &str = "^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$";
const DATASET: &str = "^[a-z][a-z0-9_-]{0,62}$";

/// A consumer's position in a dataset, as far as it is known without reading the table.
#[derive(Clone, Debug)]
pub struct ConsumerPosition {
    /// The consumer.
    pub consumer: ConsumerId,
    /// The dataset's name.
    pub dataset: String,
    /// Its watermark, if it has one.
    pub last_exported_at: Option<DateTime<Utc>>,
}

/// The result of setting or forgetting a watermark by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatermarkEdit {
    /// Done.
    Done,
    /// Refused: an export of that consumer is being committed.
    Committing,
}

impl Store {
    /// A consumer's watermark, if it has one.
    pub async fn watermark(&self, lane: Lane<'_>) -> Result<Option<Watermark>, Error> {
        let statement = sqlx::query_scalar(
            "-- store.watermarks.get
             select last_exported_at from watermarks
             where consumer_id = $1 and dataset = $2 and last_exported_at is not null",
        )
        .bind(lane.consumer.as_str())
        .bind(lane.dataset);
        let time: Option<DateTime<Utc>> = self.with(async |conn| statement.fetch_optional(conn).await).await?;
        Ok(time.map(|last_exported_at| Watermark {
            consumer: lane.consumer.clone(),
            dataset: lane.dataset.to_owned(),
            last_exported_at,
        }))
    }

    /// The positions of all consumers that have a watermark or ever asked for an export, by consumer and dataset,
    /// `limit` of them at most; those after `after`, and of the consumers `among`, where these are given.
    pub async fn positions(
        &self,
        after: Option<Lane<'_>>,
        among: Option<&[ConsumerId]>,
        limit: u32,
    ) -> Result<Vec<ConsumerPosition>, Error> {
        // Without a lane: before every name, and from the first to the last.
        let (consumer, dataset) = after.map_or(("", ""), |lane| (lane.consumer.as_str(), lane.dataset));
        let among = among.map(|ids| ids.iter().map(ConsumerId::as_str).collect::<Vec<_>>());
        let (first, last) = among.map_or((vec![""], vec!["~"]), |ids| (ids.clone(), ids));
        let statement = sqlx::query_as(include_str!("watermarks/places.sql"))
            .bind(consumer)
            .bind(dataset)
            .bind(i64::from(limit))
            .bind(first)
            .bind(last)
            .bind(CONSUMER)
            .bind(DATASET);
        let rows: Vec<(String, String, Option<DateTime<Utc>>)> =
            self.in_index_order(async |tx| statement.fetch_all(tx).await).await?;
        let place = |(consumer, dataset, last_exported_at): (String, String, _)| {
            Some(ConsumerPosition { consumer: consumer.parse().ok()?, dataset, last_exported_at })
        };
        Ok(rows.into_iter().filter_map(place).collect())
    }

    /// Sets a consumer's watermark by hand. A running export of the consumer begins anew from there.
    pub async fn set_watermark(&self, watermark: &Watermark) -> Result<WatermarkEdit, Error> {
        let statement = sqlx::query(
            "-- store.watermarks.set
             insert into watermarks (consumer_id, dataset, last_exported_at, updated_at) values ($1, $2, $3, clock_timestamp())
             on conflict (consumer_id, dataset) do update
             set last_exported_at = excluded.last_exported_at, updated_at = excluded.updated_at",
        );
        let statement = statement.bind(watermark.consumer.as_str()).bind(&watermark.dataset);
        self.write_by_hand(statement.bind(watermark.last_exported_at)).await
    }

    /// Forgets a consumer's watermark, if it has one. Its next export starts from the beginning.
    pub async fn forget_watermark(&self, lane: Lane<'_>) -> Result<WatermarkEdit, Error> {
        let statement = sqlx::query(
            "-- store.watermarks.forget
             delete from watermarks where consumer_id = $1 and dataset = $2",
        );
        self.write_by_hand(statement.bind(lane.consumer.as_str()).bind(lane.dataset)).await
    }

    async fn write_by_hand(&self, statement: Query<'_, Postgres, PgArguments>) -> Result<WatermarkEdit, Error> {
        let written = self.transaction(async |tx| {
            // The commit of an export holds the row's lock, and would be undone by a change under it.
            sqlx::query("-- store.watermarks.timeout\n set local lock_timeout = '500ms'").execute(&mut *tx).await?;
            statement.execute(tx).await
        });
        match written.await {
            Ok(_) => Ok(WatermarkEdit::Done),
            Err(Error::LockConflict(_)) => Ok(WatermarkEdit::Committing),
            Err(error) => Err(error),
        }
    }
}

/// The change that a commit makes to a consumer's position.
pub(crate) struct Advance<'a> {
    pub(crate) export_type: ExportType,
    /// The position that the export found.
    pub(crate) position: &'a Position,
    /// The position that the export leaves.
    pub(crate) new_position: &'a NewPosition,
    /// The time that people read; `None`: no exported row had one that could be.
    pub(crate) to: Option<DateTime<Utc>>,
}

/// Moves a consumer's position, if it still is what the export found when it began: version and time. False: it isn't.
pub(crate) async fn advance(conn: &mut PgConnection, lane: Lane<'_>, advance: &Advance<'_>) -> Result<bool, Error> {
    let Advance { export_type, position, new_position, to } = advance;
    // An incremental export delivers no deletions: those since its last delta or full stay due.
    let deletions = match (export_type, &position.deletions) {
        (ExportType::Incremental, Some(due)) if new_position.snapshot.is_some() => Some(due),
        _ => new_position.snapshot.as_ref(),
    };
    let statement = match position.version {
        None => sqlx::query(include_str!("watermarks/first.sql")),
        Some(_) => sqlx::query(include_str!("watermarks/advance.sql")),
    };
    let table = &new_position.table;
    let moved = statement
        .bind(lane.consumer.as_str())
        .bind(lane.dataset)
        .bind(to)
        .bind(position.version)
        .bind(position.last_exported_at)
        .bind(&new_position.snapshot)
        .bind(deletions)
        .bind(Oid(table.table_oid))
        .bind(table.relfilenode.map(Oid))
        .bind(&table.table_columns_hash)
        .bind(table.cluster_id)
        .bind(export_type.as_str())
        .bind(&table.definition)
        .bind(Json(&table.types))
        .bind(Json(&table.guard_state))
        .execute(conn)
        .await?;
    Ok(moved.rows_affected() == 1)
}
