//! Records acknowledgements: in each lane, the consumer has loaded all exports up to a number.
//!
//! Retention keeps later exports (`store::retention`). No position and no claim depends on an acknowledgement.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::job::lane::{COUNTED_EXPORTS, Unacknowledged};
use crate::job::{ConsumerId, JobId};
use crate::store::{Error, Store};

impl Store {
    /// Records that the consumer loaded a published export and all exports before it in the lane.
    ///
    /// Returns false if that is recorded already, or if no published export has this id.
    pub async fn acknowledge(&self, id: JobId) -> Result<bool, Error> {
        // The second of two concurrent calls waits for the lane's row, and then compares its number with the new
        // one.
        // After a restore of the whole database, the lane has the number of that time. After a restore of only some
        // tables, the acknowledged number may exceed the lane's last number. Such a number belongs to no export, so any
        // number replaces it.
        let statement = sqlx::query(
            "-- store.acknowledgements.acknowledge
             update cdc_export.lanes l set acknowledged = e.number, acknowledged_at = clock_timestamp()
             from exports e
             where e.id = $1 and e.published_at is not null and e.number is not null
               and l.consumer_id = e.consumer_id and l.dataset = e.dataset
               -- The consumer was not removed since.
               and (l.removed_sequence is null or e.number > l.removed_number)
               and (l.acknowledged is null or l.acknowledged < e.number or l.acknowledged > l.last_number)",
        )
        .bind(id.as_uuid());
        Ok(self.execute(statement).await? == 1)
    }

    /// Returns the unacknowledged exports of those of these lanes that ever acknowledged an export. Entry `i` of
    /// `consumers` and entry `i` of `datasets` name one lane.
    pub async fn unacknowledged(
        &self,
        consumers: &[&str],
        datasets: &[&str],
    ) -> Result<HashMap<(ConsumerId, String), Unacknowledged>, Error> {
        let statement = sqlx::query_as(include_str!("acknowledgements/unacknowledged.sql"))
            .bind(consumers)
            .bind(datasets)
            .bind(COUNTED_EXPORTS as i64);
        let rows: Vec<(String, String, i64, Option<DateTime<Utc>>)> =
            self.in_index_order(async |tx| statement.fetch_all(tx).await).await?;
        let entry = |(consumer, dataset, exports, since): (String, String, i64, _)| {
            Some(((consumer.parse().ok()?, dataset), Unacknowledged { exports: exports.unsigned_abs(), since }))
        };
        Ok(rows.into_iter().filter_map(entry).collect())
    }
}
