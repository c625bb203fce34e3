//! The position of a consumer in a dataset.
//!
//! `store` reads and updates the position. `source` reads it inside an export's snapshot.
//!
//! This module must not know SQL.

use std::collections::BTreeMap;

use cdc_dataset::GuardState;
use chrono::{DateTime, Utc};

use crate::continuity::Continuity;

/// The changes that wait for a consumer, as the table's rows and times tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    Nothing,
    /// The earliest time of a row after the watermark.
    Since(DateTime<Utc>),
    /// It is unknown: only the change log tells it, no index has the times, or the table could not be read.
    Unknown,
}

/// The state of a lane's table when it was last read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Its changes are not captured, although the dataset needs that.
    NotTracked,
    /// It is missing, differs from what its dataset says, or may not be read: an export of any type fails.
    Unfit,
    /// It can't be looked at now.
    Unknown,
}

#[derive(Clone, Debug)]
pub struct ConsumerLag {
    pub consumer: String,
    /// The consumer's watermark, if it has one: the latest finite `updated_at` that was exported, or a time that
    /// somebody wrote. By the timestamp rule, the consumer has every row up to this time.
    pub last_exported_at: Option<DateTime<Utc>>,
    pub dataset: String,
    pub table: Readiness,
    pub waiting: Waiting,
    pub continuity: Option<Continuity>,
}

/// The part of the change log that a consumer's position holds.
#[derive(Clone, Debug)]
pub struct LogUse {
    pub consumer_id: String,
    pub dataset: String,
    /// The estimated bytes of the rows that the position holds.
    pub bytes: u64,
    /// The bytes above which the position is given up, if the other tables hold what they hold now.
    pub max_bytes: u64,
}

/// The consumer's position when an export began. The commit fails if the position has changed since.
#[derive(Clone, Debug, Default)]
pub struct Position {
    /// The version of the row in `watermarks`. `None` if there was no row.
    pub version: Option<i64>,
    /// The watermark. The commit compares it too, because a manual `UPDATE` does not change the version.
    pub last_exported_at: Option<DateTime<Utc>>,
    /// By the timestamp rule, rows with a later time have changed. `None` if the change log alone determines the
    /// changes.
    pub since: Option<DateTime<Utc>>,
    /// The snapshot up to which the consumer has the live rows. `None` if the watermark alone determines them.
    pub live: Option<PgSnapshot>,
    /// The snapshot up to which the consumer has the deletions. It is never newer than `live`.
    pub deletions: Option<PgSnapshot>,
    /// The export includes rows that were soft-deleted after this time, in addition to the deletions in the change log.
    /// It is set if the watermark was set manually. `None` if the change log alone determines the deletions.
    pub deleted_since: Option<DateTime<Utc>>,
}

/// A `pg_snapshot` in Postgres's text form: the set of transactions that were visible at a moment.
pub(crate) type PgSnapshot = String;

/// The consumer's new position, which the commit of an export saves.
#[derive(Clone, Debug, Default)]
pub struct NewPosition {
    /// The snapshot of the export. `None` if the dataset uses timestamps alone.
    pub snapshot: Option<PgSnapshot>,
    pub taken_at: DateTime<Utc>,
    /// The state of the table, by which the guard later detects a change.
    pub table: Fingerprint,
}

/// The state of the table and the database when a position was saved. Only the guard in `source` compares it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    pub table_oid: u32,
    pub relfilenode: Option<u32>,
    pub table_columns_hash: String,
    pub guard_state: GuardState,
    /// The text of [`Dataset::definition`](cdc_dataset::Dataset::definition).
    pub definition: String,
    /// The types of the columns that the dataset uses, by the names of the columns.
    pub types: BTreeMap<String, String>,
    pub cluster_id: i64,
}

impl Position {
    /// Returns the watermark after an export whose latest row has the time `exported`. An export never moves the
    /// watermark back.
    pub fn advanced_to(&self, exported: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
        self.last_exported_at.max(exported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_never_moves_the_watermark_back() {
        let (early, late) = (DateTime::from_timestamp_nanos(1), DateTime::from_timestamp_nanos(2));
        let at = |last_exported_at| Position { version: Some(1), last_exported_at, ..Position::default() };
        assert_eq!(at(Some(late)).advanced_to(Some(early)), Some(late));
        assert_eq!(at(Some(early)).advanced_to(Some(late)), Some(late));
        assert_eq!(at(Some(early)).advanced_to(None), Some(early));
        assert_eq!(at(None).advanced_to(None), None);
    }
}
