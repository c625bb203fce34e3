//! Records acknowledgements: in each lane, the consumer has loaded all exports up to a number.
//!
//! Retention keeps later exports (`store::retention`). No position and no claim depends on an acknowledgement.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::job::unacknowledged::{COUNTED_EXPORTS, Unacknowledged};
use crate::store::{Error, Store};
use cdc_manifest::{ConsumerId, JobId};

impl Store {
    /// Records that the consumer loaded a job's published exports of these datasets, and all exports before them in
    /// their lanes. Returns the datasets of which that was not recorded before.
    pub async fn acknowledge(&self, job: JobId, datasets: &[&str]) -> Result<Vec<String>, Error> {
        // The second of two concurrent calls waits for the lane's row, and then compares its number with the new
        // one.
        // After a restore of the whole database, the lane has the number of that time. After a restore of only some
        // tables, the acknowledged number may exceed the lane's last number. Such a number belongs to no export, so any
        // number replaces it.
        let statement = sqlx::query_scalar(
            "-- store.acknowledgements.acknowledge
             update cdc_export.lanes l set acknowledged = e.number, acknowledged_at = clock_timestamp()
             from cdc_export.exports e
             where e.job = $1 and e.dataset = any ($2) and e.published_at is not null and e.number is not null
               and l.consumer_id = e.consumer_id and l.dataset = e.dataset
               -- The consumer was not removed since.
               and (l.removed_sequence is null or e.number > l.removed_number)
               and (l.acknowledged is null or l.acknowledged < e.number or l.acknowledged > l.last_number)
             returning e.dataset",
        )
        .bind(job.as_uuid())
        .bind(datasets);
        self.with(async |conn| statement.fetch_all(conn).await).await
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
