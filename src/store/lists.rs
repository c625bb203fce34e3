//! Lists jobs, newest first. With any filter, a page reads no more index entries of each list than it has rows.
//!
//! Each index orders the jobs by one text, the key. The key consists of all fields that a filter may name, or leaves
//! out the consumer, the dataset or both. A filter selects a set of keys. Each key has a list of its own, and a page is
//! merged from these lists. Hardly anything is filtered after the index is read, so a page of rare jobs is as fast as
//! any other page.
//!
//! Without datasets, the keys are of jobs. With datasets, they are of exports, with the type and the status of each.

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::job::{Bounds, Filter, JobPage, Status};
use crate::store::export_row::{EXPORT_COLUMNS, JOB_COLUMNS, JobRow, jobs_of};
use crate::store::{Error, Store};
use cdc_manifest::ConsumerId;
use pg_rows::export_type::ExportType;
use pg_session::statement::with_pieces;

/// The number of exports from which on a page takes no further job.
const MAX_EXPORTS: i64 = 1_000;

impl Store {
    /// Returns up to `limit` jobs that have an export within the bounds and match a filter, newest first.
    pub async fn jobs(&self, filter: &Filter, bounds: &Bounds, limit: u32) -> Result<JobPage, Error> {
        let keys = keys(filter, bounds);
        if keys.is_empty() {
            return Ok(JobPage::default());
        }
        let pieces = [("list", &*list(filter, bounds)), JOB_COLUMNS, EXPORT_COLUMNS];
        let statement = sqlx::query_as(AssertSqlSafe(with_pieces(include_str!("lists/jobs.sql"), &pieces)))
            .bind(keys)
            .bind(filter.before.map_or(Uuid::max(), |job| job.as_uuid()))
            .bind(i64::from(limit) + 1)
            .bind(MAX_EXPORTS);
        let rows: Vec<JobRow> = self.in_index_order(async |tx| statement.fetch_all(tx).await).await?;
        let exports = rows.len() as i64;
        let mut jobs = jobs_of(rows).collect::<Result<Vec<_>, _>>()?;
        let has_more = jobs.len() > limit as usize || exports >= MAX_EXPORTS;
        jobs.truncate(limit as usize);
        Ok(JobPage { jobs, has_more })
    }
}

/// Returns the keys of the lists from which a page is merged.
pub(super) fn keys(filter: &Filter, bounds: &Bounds) -> Vec<String> {
    let types = filter.export_type.as_ref().map_or(ExportType::ALL, std::slice::from_ref);
    let statuses = stored_statuses(filter, is_of_exports(filter, bounds));
    let own = bounds.consumers.as_ref().map(|ids| ids.iter().map(ConsumerId::as_str).collect());
    let consumers = selected(filter.consumer.as_ref().map(ConsumerId::as_str), own);
    let own = bounds.datasets.as_ref().map(|names| names.iter().map(String::as_str).collect());
    let datasets = selected(filter.dataset.as_deref(), own);
    let mut keys = Vec::new();
    for consumer in &consumers {
        for dataset in &datasets {
            for export_type in types {
                for status in statuses {
                    let fields = [*consumer, *dataset, Some(export_type.as_str()), Some(*status)];
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

/// Returns true if the keys are of exports, because datasets are selected.
fn is_of_exports(filter: &Filter, bounds: &Bounds) -> bool {
    filter.dataset.is_some() || bounds.datasets.is_some()
}

/// Returns the statuses in the keys for the status of a filter, as the tables have them.
fn stored_statuses(filter: &Filter, is_of_exports: bool) -> &'static [&'static str] {
    match (filter.status, is_of_exports) {
        (None, false) => &["pending", "processing", "committed", "completed", "skipped", "failed", "cancelled"],
        (None, true) => &["open", "completed", "skipped", "failed", "cancelled"],
        (Some(Status::Pending), false) => &["pending"],
        (Some(Status::Processing), false) => &["processing", "committed"],
        (Some(Status::Pending | Status::Processing), true) => &["open"],
        (Some(Status::Completed), _) => &["completed"],
        (Some(Status::Skipped), _) => &["skipped"],
        (Some(Status::Failed), _) => &["failed"],
        (Some(Status::Cancelled), _) => &["cancelled"],
    }
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

/// Returns a query of the ids and the keys of the index that fits the filter.
pub(super) fn list(filter: &Filter, bounds: &Bounds) -> String {
    let is_of_consumer = filter.consumer.is_some() || bounds.consumers.is_some();
    if !is_of_exports(filter, bounds) {
        let consumer = if is_of_consumer { "j.consumer_id || ' ' || " } else { "" };
        return format!("select j.id, {consumer}j.export_type || ' ' || j.status as key from cdc_export.jobs j");
    }
    let consumer = if is_of_consumer { "e.consumer_id || ' ' || " } else { "" };
    // The key of an open export doesn't tell if its job waits or runs.
    let is_pending = "(select j.status = 'pending' from cdc_export.jobs j where j.id = e.job)";
    let shown = match filter.status {
        Some(Status::Pending) => is_pending.to_owned(),
        Some(Status::Processing) => format!("not {is_pending}"),
        _ => "true".to_owned(),
    };
    let status = "case when e.status = 'completed' and e.published_at is null then 'open' else e.status end";
    format!(
        "select e.job as id, {consumer}e.dataset || ' ' || e.export_type || ' ' || {status} as key \
         from cdc_export.exports e where {shown}"
    )
}
