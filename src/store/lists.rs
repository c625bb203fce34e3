//! Lists jobs, newest first. With any filter, a page reads about as many index entries as it has rows.
//!
//! Each index orders the jobs by one text, the key. The key consists of all fields that a filter may name, or leaves
//! out the consumer, the dataset or both. A filter selects a set of keys. Each key has a list of its own, and a page is
//! merged from these lists. Nothing is filtered after the index is read, so a page of rare jobs is as fast as any other
//! page.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::connection::statement::with_pieces;
use crate::job::{Bounds, ConsumerId, ExportType, Filter, Job, Status};
use crate::store::job_row::{JOB_COLUMNS, JobRow};
use crate::store::{Error, Store};

/// The number of entries that the first step reads of each list.
const FIRST_STEP: i64 = 4;
/// The number of entries that the second step reads of each list that continues. The third step reads a whole page.
const SECOND_STEP: i64 = 32;

impl Store {
    /// Returns up to `limit` jobs within the bounds that match a filter, newest first.
    pub async fn jobs(&self, filter: &Filter, bounds: &Bounds, limit: u32) -> Result<Vec<Job>, Error> {
        let keys = keys(filter, bounds);
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (time, id) = match filter.before {
            Some((created_at, id)) => (created_at, id.as_uuid()),
            None => (last_time(), Uuid::max()),
        };
        let key = key_expression(filter, bounds);
        let statement = with_pieces(include_str!("lists/jobs.sql"), &[("key", &key), JOB_COLUMNS]);
        let statement = sqlx::query_as(AssertSqlSafe(statement))
            .bind(keys)
            .bind(time)
            .bind(id)
            .bind(i64::from(limit))
            .bind(FIRST_STEP)
            .bind(SECOND_STEP);
        let rows: Vec<JobRow> = self.in_index_order(async |tx| statement.fetch_all(tx).await).await?;
        rows.into_iter().map(Job::try_from).collect()
    }
}

/// Returns a time later than the creation of any job.
fn last_time() -> DateTime<Utc> {
    DateTime::from_timestamp(253_402_300_799, 0)
        .expect("the last second of the year 9999 is in the range of `DateTime`")
}

/// Returns the keys of the lists from which a page is merged.
pub(super) fn keys(filter: &Filter, bounds: &Bounds) -> Vec<String> {
    let types = filter.export_type.as_ref().map_or(ExportType::ALL, std::slice::from_ref);
    let statuses = filter.status.as_ref().map_or(Status::ALL, std::slice::from_ref);
    let own = bounds.consumers.as_ref().map(|ids| ids.iter().map(ConsumerId::as_str).collect());
    let consumers = selected(filter.consumer.as_ref().map(ConsumerId::as_str), own);
    let own = bounds.datasets.as_ref().map(|names| names.iter().map(String::as_str).collect());
    let datasets = selected(filter.dataset.as_deref(), own);
    let mut keys = Vec::new();
    for consumer in &consumers {
        for dataset in &datasets {
            for export_type in types {
                for status in statuses {
                    let fields = [*consumer, *dataset, Some(export_type.as_str()), Some(status.as_str())];
                    keys.push(fields.into_iter().flatten().collect::<Vec<_>>().join(" "));
                }
            }
        }
    }
    // The bounds may name a consumer or a dataset twice.
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Returns the values of a field for which jobs are listed. `None` leaves the field out of the keys.
fn selected<'a>(wanted: Option<&'a str>, allowed: Option<Vec<&'a str>>) -> Vec<Option<&'a str>> {
    match (wanted, allowed) {
        (Some(wanted), Some(allowed)) if !allowed.contains(&wanted) => Vec::new(),
        (Some(wanted), _) => vec![Some(wanted)],
        (None, Some(allowed)) => allowed.into_iter().map(Some).collect(),
        (None, None) => vec![None],
    }
}

/// The status of a job as clients see it, as in `job_columns.sql` and in the indexes of the lists.
const PUBLIC_STATUS: &str =
    "case when e.status = 'completed' and e.published_at is null then 'processing' else e.status end";

/// Returns the expression of the index that fits the filter.
pub(super) fn key_expression(filter: &Filter, bounds: &Bounds) -> String {
    let key = [
        (filter.consumer.is_some() || bounds.consumers.is_some()).then_some("e.consumer_id"),
        (filter.dataset.is_some() || bounds.datasets.is_some()).then_some("e.dataset"),
        Some("e.export_type"),
        Some(PUBLIC_STATUS),
    ];
    let key: Vec<_> = key.into_iter().flatten().collect();
    key.join(" || ' ' || ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_filter_by_the_status_that_jobs_show() {
        assert!(JOB_COLUMNS.1.contains(&format!("{PUBLIC_STATUS} as status,")));
    }
}
