//! Writes and lists the audit log.
//!
//! The row of a change is written by the statement of the change, which calls the database function `cdc_export.audit`
//! with the store's origin. This file writes the rows of downloads and refusals, which change nothing.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use uuid::Uuid;

use crate::audit::{Action, AuditEntry, AuditFilter, DONE, Origin};
use crate::job::{ConsumerId, JobId};
use crate::store::{Error, Store};

/// The limit on rows that one statement deletes.
const FORGOTTEN_ROWS: i64 = 10_000;

#[derive(sqlx_macros::FromRow)]
struct AuditRow {
    id: i64,
    at: DateTime<Utc>,
    request_id: Option<String>,
    key: Option<String>,
    remote: Option<String>,
    action: String,
    consumer_id: Option<String>,
    dataset: Option<String>,
    job_id: Option<Uuid>,
    outcome: String,
    count: i64,
}

impl TryFrom<AuditRow> for AuditEntry {
    type Error = Error;

    fn try_from(row: AuditRow) -> Result<AuditEntry, Error> {
        Ok(AuditEntry {
            id: row.id,
            at: row.at,
            request_id: row.request_id,
            key: row.key,
            remote: row.remote,
            action: row.action.parse()?,
            consumer: row.consumer_id,
            dataset: row.dataset,
            job: row.job_id.map(JobId::from),
            outcome: row.outcome,
            count: row.count,
        })
    }
}

impl Store {
    /// Records that the download of a job's file begins. `part` is the file's number, from 1.
    pub async fn record_download(&self, job: JobId, part: Option<u32>) -> Result<(), Error> {
        self.record(Action::Download, (None, None, Some(job)), part, DONE).await
    }

    /// Records that the files of a job are about to be removed.
    pub async fn record_removal(&self, job: JobId) -> Result<(), Error> {
        self.record(Action::RemoveFile, (None, None, Some(job)), None, DONE).await
    }

    /// Records that a request was refused with this code.
    pub async fn record_refusal(&self, action: Action, code: &str) -> Result<(), Error> {
        let Some(Origin { consumer, dataset, job, .. }) = self.origin.as_deref() else { return Ok(()) };
        self.record(action, (consumer.get(), dataset.get().map(String::as_str), job.get().copied()), None, code).await
    }

    async fn record(
        &self,
        action: Action,
        (consumer, dataset, job): (Option<&ConsumerId>, Option<&str>, Option<JobId>),
        part: Option<u32>,
        outcome: &str,
    ) -> Result<(), Error> {
        let statement = sqlx::query(include_str!("audit/record.sql"))
            .bind(self.origin())
            .bind(action.as_str())
            .bind(consumer.map(ConsumerId::as_str))
            .bind(dataset)
            .bind(job.map(JobId::as_uuid))
            .bind(part.and_then(|part| i32::try_from(part).ok()))
            .bind(outcome);
        self.execute(statement).await.map(drop)
    }

    /// Returns up to `limit` rows of the audit log that match a filter, newest first.
    pub async fn audit_entries(&self, filter: &AuditFilter, limit: u32) -> Result<Vec<AuditEntry>, Error> {
        let statement = sqlx::query_as(include_str!("audit/list.sql"))
            .bind(&filter.key)
            .bind(filter.consumer.as_ref().map(ConsumerId::as_str))
            .bind(&filter.dataset)
            .bind(filter.action.map(Action::as_str))
            .bind(filter.from)
            .bind(filter.to)
            .bind(filter.before)
            .bind(i64::from(limit));
        let rows: Vec<AuditRow> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        rows.into_iter().map(AuditEntry::try_from).collect()
    }

    /// Deletes the rows of the audit log that are older than `age`.
    pub async fn forget_audit(&self, age: Duration) -> Result<(), Error> {
        loop {
            let statement = sqlx::query(
                "-- store.audit.forget
                 delete from cdc_export.audit_log where id in (
                   select id from cdc_export.audit_log
                   where at < statement_timestamp() - make_interval(secs => $1) order by at limit $2)",
            )
            .bind(age.as_secs_f64())
            .bind(FORGOTTEN_ROWS);
            if self.execute(statement).await? < FORGOTTEN_ROWS as u64 {
                return Ok(());
            }
        }
    }

    /// Returns the parameter `origin` of the database function `cdc_export.audit`.
    pub(crate) fn origin(&self) -> Option<Json<serde_json::Value>> {
        self.origin.as_ref().map(|origin| Json(origin.to_json()))
    }
}
