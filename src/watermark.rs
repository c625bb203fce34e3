//! Where a consumer stands in a dataset.
//!
//! Knows no SQL; `store` reads and moves it, `source` reads the position inside an export's snapshot.

use chrono::{DateTime, Utc};

use crate::job::ConsumerId;

/// What a consumer may know of its place: everything up to this time it has, by the stated rule.
#[derive(Clone, Debug)]
pub struct Watermark {
    /// Whose.
    pub consumer: ConsumerId,
    /// In which dataset.
    pub dataset: String,
    /// The latest finite `updated_at` that was exported, or a time that somebody set by hand.
    pub last_exported_at: DateTime<Utc>,
}

/// What an export saw of its consumer's place when it began, and must find unchanged when it commits.
#[derive(Clone, Debug, Default)]
pub struct Position {
    /// The row's version; `None`: there was no row.
    pub version: Option<i64>,
    /// The row's time. Compared beside the version, since an `UPDATE` by hand leaves the version alone.
    pub last_exported_at: Option<DateTime<Utc>>,
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
        let at = |last_exported_at| Position { version: Some(1), last_exported_at };
        assert_eq!(at(Some(late)).advanced_to(Some(early)), Some(late));
        assert_eq!(at(Some(early)).advanced_to(Some(late)), Some(late));
        assert_eq!(at(Some(early)).advanced_to(None), Some(early));
        assert_eq!(at(None).advanced_to(None), None);
    }
}
