//! Counts the exports of the last day by the hour, from the indexes of the lists of jobs.

use std::collections::BTreeMap;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::job::activity::{HOURS, HourlyExports, LastDay};
use crate::job::{Bounds, Filter, Status};
use crate::store::lists::{keys, list};
use crate::store::{Error, Store};
use pg_session::statement::with_pieces;

/// The limit on counted jobs of each list.
const MAX_COUNTED: i64 = 100_000;

/// The limit on consumers and on datasets.
const MAX_NAMES: usize = 1_000;

#[derive(sqlx_macros::FromRow)]
struct HourRow {
    is_dataset: bool,
    name: String,
    hour: i32,
    completed: i64,
    failed: i64,
    rows: i64,
}

impl Store {
    /// Counts the exports within the bounds whose jobs match a filter, by the hour of their creation. The filter's
    /// status and position are not used.
    ///
    /// Returns the consumers and datasets with the most failures first, then those with the most exports.
    pub async fn activity(&self, filter: &Filter, bounds: &Bounds) -> Result<LastDay, Error> {
        let (now, hour) = (Utc::now(), TimeDelta::hours(1));
        // The beginning of the first of the hours that end with the current one.
        let since = now.duration_trunc(hour).unwrap_or(now) - hour * (HOURS as i32 - 1);
        let of_status = |status| keys(&Filter { status: Some(status), ..filter.clone() }, bounds);
        let keys = [of_status(Status::Completed), of_status(Status::Failed)].concat();
        if keys.is_empty() {
            return Ok(LastDay { since, consumers: Vec::new(), datasets: Vec::new() });
        }
        let datasets = match &filter.dataset {
            Some(dataset) => Some(std::slice::from_ref(dataset)),
            None => bounds.datasets.as_deref(),
        };
        let any_status = Filter { status: None, ..filter.clone() };
        let statement = with_pieces(include_str!("activity/hours.sql"), &[("list", &list(&any_status, bounds))]);
        let statement = sqlx::query_as(AssertSqlSafe(statement))
            .bind(keys)
            .bind(first_id(since))
            .bind(since)
            .bind(HOURS as i32)
            .bind(MAX_COUNTED)
            .bind(datasets);
        let rows: Vec<HourRow> = self.in_index_order(async |tx| statement.fetch_all(tx).await).await?;
        let (datasets, consumers) = rows.into_iter().partition(|row| row.is_dataset);
        Ok(LastDay { since, consumers: by_name(consumers), datasets: by_name(datasets) })
    }
}

/// Returns the first id that a job may have which was created at this time, by clocks that differ by a minute at most.
fn first_id(time: DateTime<Utc>) -> Uuid {
    let millis = (time - TimeDelta::minutes(1)).timestamp_millis().max(0) as u64;
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

fn by_name(rows: Vec<HourRow>) -> Vec<HourlyExports> {
    let mut names = BTreeMap::<String, HourlyExports>::new();
    for row in rows {
        let hour = row.hour.unsigned_abs() as usize;
        let counts = names.entry(row.name).or_default();
        counts.completed[hour] = row.completed.unsigned_abs();
        counts.failed[hour] = row.failed.unsigned_abs();
        counts.rows[hour] = row.rows.unsigned_abs();
    }
    let mut items: Vec<_> = names.into_iter().map(|(name, counts)| HourlyExports { name, ..counts }).collect();
    let total = |hours: &[u64; HOURS]| hours.iter().sum::<u64>();
    items.sort_by_key(|item| std::cmp::Reverse((total(&item.failed), total(&item.completed))));
    items.truncate(MAX_NAMES);
    items
}
