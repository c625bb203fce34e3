//! Acknowledgements of consumers: for each lane, all exports up to a number are loaded.
//!
//! Retention keeps what comes after it (`store::retention`). No position and no claim depends on it.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::job::lane::{COUNTED_EXPORTS, Unacknowledged};
use crate::job::{ConsumerId, JobId};
use crate::store::{Error, Store};

impl Store {
    /// Records that a published export, and all before it in its lane, are loaded. False: that was known, or nobody was
    /// handed such an export.
    pub async fn acknowledge(&self, id: JobId) -> Result<bool, Error> {
        // Of two at once the second waits for the lane's row, and then compares its number with the one that is there
        // by then. A database that was put back as a whole has what was acknowledged by then. Where only some of it was
        // put back, the number may be beyond the lane's last one: it is nobody's, and gives way to any.
        let statement = sqlx::query(
            "-- store.acknowledgements.acknowledge
             update cdc_export.lanes l set acknowledged = e.number, acknowledged_at = clock_timestamp()
             from exports e
             where e.id = $1 and e.published_at is not null and e.number is not null
               and l.consumer_id = e.consumer_id and l.dataset = e.dataset
               and (l.acknowledged is null or l.acknowledged < e.number or l.acknowledged > l.last_number)",
        )
        .bind(id.as_uuid());
        Ok(self.execute(statement).await? == 1)
    }

    /// Returns the exports to acknowledge in each of these lanes, consumers and datasets, that has ever acknowledged an
    /// export.
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
        let of_lane = |(consumer, dataset, exports, since): (String, String, i64, _)| {
            Some(((consumer.parse().ok()?, dataset), Unacknowledged { exports: exports.unsigned_abs(), since }))
        };
        Ok(rows.into_iter().filter_map(of_lane).collect())
    }
}
