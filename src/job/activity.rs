//! The exports of the last day, counted by the hour.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

/// The number of hours that are counted. The last one is the current hour.
pub const HOURS: usize = 24;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastDay {
    pub since: DateTime<Utc>,
    /// The consumers that have exports. Ad-hoc exports have no consumer.
    pub consumers: Vec<HourlyExports>,
    pub datasets: Vec<HourlyExports>,
}

/// The exports of a consumer or a dataset in each of the 24 hours, by the time when they were requested.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct HourlyExports {
    /// The name of the consumer or the dataset
    pub name: String,
    /// The number of completed exports in each hour. Skipped exports are not counted
    #[schema(value_type = Vec<u64>)]
    pub completed: [u64; HOURS],
    /// The number of failed exports in each hour
    #[schema(value_type = Vec<u64>)]
    pub failed: [u64; HOURS],
    /// The rows of the completed exports in each hour
    #[schema(value_type = Vec<u64>)]
    pub rows: [u64; HOURS],
}
