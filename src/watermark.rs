//! The position of a consumer in a dataset.
//!
//! Knows no SQL; `store` reads and moves it, `source` reads the position inside an export's snapshot.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::job::{ConsumerId, Continuity};

/// The public part of a position: the consumer has every row up to this time, by the timestamp rule.
#[derive(Clone, Debug)]
pub struct Watermark {
    /// Whose.
    pub consumer: ConsumerId,
    /// In which dataset.
    pub dataset: String,
    /// The latest finite `updated_at` that was exported, or a time that somebody set by hand.
    pub last_exported_at: DateTime<Utc>,
}

/// The most waiting rows that are counted.
pub const COUNTED_ROWS: u64 = 10_000;

/// A number of rows, as far as they are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Exactly so many.
    Exactly(u64),
    /// So many, and perhaps more: more than [`COUNTED_ROWS`], or the changes reach further back than is looked.
    AtLeast(u64),
    /// Unknown: the table can't be read as its dataset says, or the dataset is not in the catalog any more.
    Unknown,
}

/// The lag of a consumer behind a dataset's table.
#[derive(Clone, Debug)]
pub struct ConsumerLag {
    /// Who.
    pub consumer: ConsumerId,
    /// Its watermark, if it has one.
    pub last_exported_at: Option<DateTime<Utc>>,
    /// In which dataset.
    pub dataset: String,
    /// Rows that changed since its last export.
    pub rows_waiting: Waiting,
    /// The guard's verdict: the reason why the next export can't simply go on.
    pub continuity: Option<Continuity>,
}

/// The consumer's position when an export began, which the commit must find unchanged.
#[derive(Clone, Debug, Default)]
pub struct Position {
    /// The row's version; `None`: there was no row.
    pub version: Option<i64>,
    /// The row's time. Compared beside the version, since an `UPDATE` by hand leaves the version alone.
    pub last_exported_at: Option<DateTime<Utc>>,
    /// Rows after this time are changed by the timestamp rule; `None`: by the log alone, where there is a snapshot.
    pub since: Option<DateTime<Utc>>,
    /// Live rows are delivered up to this snapshot; `None`: the time alone rules.
    pub live: Option<PgSnapshot>,
    /// Deletions are delivered up to this one, which is never newer.
    pub deletions: Option<PgSnapshot>,
    /// Beside the log's deletions, soft-deleted rows after this time are due: the time was set by hand.
    /// `None`: the log alone tells deletions, where there is a snapshot.
    pub deleted_since: Option<DateTime<Utc>>,
}

/// A `pg_snapshot` in Postgres's text form: which transactions were visible at a moment.
pub type PgSnapshot = String;

/// The consumer's new position, which the commit of an export saves.
#[derive(Clone, Debug, Default)]
pub struct NewPosition {
    /// The exported snapshot; `None`: the times alone rule.
    pub snapshot: Option<PgSnapshot>,
    /// When it was taken.
    pub taken_at: DateTime<Utc>,
    /// The table, and what shows that it is not the same any more.
    pub table: Fingerprint,
}

/// The state of the table and the database that a position was saved with. Only the guard in `source` compares it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// The table's oid.
    pub table_oid: u32,
    /// The number of its file, if it has one.
    pub relfilenode: Option<u32>,
    /// Its columns.
    pub table_columns_hash: String,
    /// Everything else that the guard compares.
    pub guard_state: GuardState,
    /// The text of [`Dataset::definition`](crate::dataset::Dataset::definition).
    pub definition: String,
    /// The types of its columns that matter, by their names.
    pub types: BTreeMap<String, String>,
    /// The cluster's identifier.
    pub cluster_id: i64,
}

/// The state of a table that a position remembers for the guard in `source`: a JSON object. Only the guard reads its
/// members. A member that a saved position lacks isn't compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuardState(serde_json::Map<String, serde_json::Value>);

impl GuardState {
    /// The member of this name; null: there is none.
    pub fn get(&self, name: &str) -> &serde_json::Value {
        self.0.get(name).unwrap_or(&serde_json::Value::Null)
    }

    /// Sets a member.
    pub fn set(&mut self, name: &str, value: impl Into<serde_json::Value>) {
        self.0.insert(name.to_owned(), value.into());
    }
}

impl Position {
    /// The time after an export whose latest row is of `exported`: it never moves back by itself.
    pub fn advanced_to(&self, exported: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
        self.last_exported_at.max(exported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_never_moves_back() {
        let (early, late) = (DateTime::from_timestamp_nanos(1), DateTime::from_timestamp_nanos(2));
        let at = |last_exported_at| Position { version: Some(1), last_exported_at, ..Position::default() };
        assert_eq!(at(Some(late)).advanced_to(Some(early)), Some(late));
        assert_eq!(at(Some(early)).advanced_to(Some(late)), Some(late));
        assert_eq!(at(Some(early)).advanced_to(None), Some(early));
        assert_eq!(at(None).advanced_to(None), None);
    }
}
