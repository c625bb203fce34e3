//! Lists of jobs, newest first. Whatever the filter, a page reads about as many entries of an index as it has rows.
//!
//! An index has the key of a kind of job, as one text: all that a filter may name, or all but the consumer, the dataset
//! or both. A filter is a set of such keys, each of which is a list of its own, and a page is merged out of them. No
//! key leaves anything to be filtered, so that a page of jobs that are rare, or of which there are none, is as quick as
//! any.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::connection::statement::with_pieces;
use crate::job::{ExportType, Filter, Job, Status};
use crate::store::job_row::{JOB_COLUMNS, JobRow};
use crate::store::{Error, Store};

/// The number of entries of each list that are read first, and of further ones from a list that goes on; of one that
/// still goes on, a page is read.
const FIRST_STEP: i64 = 4;
const SECOND_STEP: i64 = 32;

impl Store {
    /// Jobs that a filter lets through, newest first, `limit` of them at most.
    pub async fn jobs(&self, filter: &Filter, limit: u32) -> Result<Vec<Job>, Error> {
        let keys = keys(filter);
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (time, id) = match filter.before {
            Some((created_at, id)) => (created_at, id.as_uuid()),
            None => (last_time(), Uuid::max()),
        };
        let statement = sqlx::query_as(AssertSqlSafe(statement(filter)))
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

/// A time after that of any job.
fn last_time() -> DateTime<Utc> {
    DateTime::from_timestamp(253_402_300_799, 0).expect("the end of the year 9999 is a time")
}

/// The keys of the lists that a page is merged of.
fn keys(filter: &Filter) -> Vec<String> {
    let types = filter.export_type.as_ref().map_or(ExportType::ALL, std::slice::from_ref);
    let statuses = filter.status.as_ref().map_or(Status::ALL, std::slice::from_ref);
    let consumers: Vec<Option<&str>> = match (&filter.consumer, &filter.among) {
        (None, None) => vec![None],
        (None, Some(among)) => among.iter().map(|consumer| Some(consumer.as_str())).collect(),
        (Some(consumer), Some(among)) if !among.contains(consumer) => Vec::new(),
        (Some(consumer), _) => vec![Some(consumer.as_str())],
    };
    let mut keys = Vec::new();
    for consumer in consumers {
        for export_type in types {
            for status in statuses {
                let of = [consumer, filter.dataset.as_deref(), Some(export_type.as_str()), Some(status.as_str())];
                keys.push(of.into_iter().flatten().collect::<Vec<_>>().join(" "));
            }
        }
    }
    // A consumer may be named twice.
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// A job's status as clients see it, as in `job_columns.sql` and in the indexes of the lists.
const PUBLIC_STATUS: &str =
    "case when e.status = 'completed' and e.published_at is null then 'processing' else e.status end";

/// Returns the page's statement. Its condition on the key is the expression of the index that has the keys of such a
/// filter.
fn statement(filter: &Filter) -> String {
    let key = [
        (filter.consumer.is_some() || filter.among.is_some()).then_some("e.consumer_id"),
        filter.dataset.is_some().then_some("e.dataset"),
        Some("e.export_type"),
        Some(PUBLIC_STATUS),
    ];
    let key: Vec<_> = key.into_iter().flatten().collect();
    let key = key.join(" || ' ' || ");
    with_pieces(include_str!("lists/jobs.sql"), &[("key", &key), JOB_COLUMNS])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_and_the_jobs_have_the_same_status() {
        assert!(JOB_COLUMNS.1.contains(&format!("{PUBLIC_STATUS} as status,")));
    }
}
