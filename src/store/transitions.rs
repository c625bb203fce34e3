//! Changes the status of a job and its exports after the claim, and announces the change.
//!
//! [`transition`] runs the statement that changes the status. It records the deliveries of the job's end in the same
//! transaction. So a delivery exists if and only if the transition committed.
//!
//! After the commit, [`Store::announce_all`] counts the ends in the metrics, writes the log events and wakes the
//! followers of a job that has ended. At most one process announces each end. If that process dies after the commit, or
//! loses the answer to the commit, nothing is announced. So nothing that must never be missing belongs there.

use std::collections::HashSet;

use sqlx::postgres::PgArguments;
use sqlx::query::QueryAs;
use sqlx::{PgConnection, Postgres};
use tokio::sync::broadcast;

use crate::event::Listener;
use crate::job::{Export, Status};
use crate::store::export_row::{ExportRow, skip_unreadable};
use crate::store::{Error, Store, deliveries};
use crate::telemetry::job_event;
use crate::telemetry::metrics::{self, Completed, ExportLabels};
use cdc_capture::Continuity;
use cdc_manifest::{ConsumerId, JobId};

/// A committed change of the status of an export.
#[derive(Clone, Debug)]
pub struct Transition {
    /// The status before the transition, as clients saw it.
    pub from: Status,
    /// The export after the transition, as clients see it. A committed one is still `processing` until its file is
    /// published.
    pub export: Export,
    /// The name of the session of the attempt that was taken back, if one was.
    pub session: Option<String>,
}

/// A change of the status of an export, in a transaction that may not be committed yet. A statement returns it as the
/// columns `was` and `job_status` and those of the export.
#[derive(sqlx_macros::FromRow)]
pub(super) struct TransitionRow {
    was: String,
    /// The status of the whole job after it. The job ends once, so it is a terminal one in the rows of one transition.
    job_status: String,
    /// The name of the session of an attempt that is taken back.
    #[sqlx(default)]
    session: Option<String>,
    #[sqlx(flatten)]
    pub(super) export: ExportRow,
}

impl TryFrom<TransitionRow> for Transition {
    type Error = Error;

    fn try_from(row: TransitionRow) -> Result<Transition, Error> {
        Ok(Transition { from: row.was.parse()?, export: row.export.try_into()?, session: row.session })
    }
}

/// A statement that changes statuses, and returns a row for each export of the jobs that it changed.
type Statement<'q> = QueryAs<'q, Postgres, TransitionRow, PgArguments>;

/// Runs a statement that changes the statuses of jobs, and records the deliveries of their ends. Must run in a
/// transaction.
pub(super) async fn transition(
    conn: &mut PgConnection,
    listeners: &[Listener],
    statement: Statement<'_>,
) -> Result<Vec<TransitionRow>, Error> {
    let rows = statement.fetch_all(&mut *conn).await?;
    plan_deliveries(conn, listeners, &rows).await?;
    Ok(rows)
}

/// Records the deliveries of the jobs that these transitions end, in their transaction.
pub(super) async fn plan_deliveries(
    conn: &mut PgConnection,
    listeners: &[Listener],
    rows: &[TransitionRow],
) -> Result<(), Error> {
    let has_ended = |row: &&TransitionRow| row.job_status.parse().is_ok_and(Status::is_terminal);
    let ended: Vec<_> = rows.iter().filter(has_ended).map(|row| &row.export).collect();
    if listeners.is_empty() || ended.is_empty() { Ok(()) } else { deliveries::plan(conn, listeners, &ended).await }
}

impl Store {
    /// Runs a statement that changes the statuses of jobs in a transaction of its own, and announces the changes.
    /// `cause` is the error that ended the jobs, with its causes, for the log.
    pub(super) async fn transition(
        &self,
        statement: Statement<'_>,
        cause: Option<&str>,
    ) -> Result<Vec<Transition>, Error> {
        let rows = match self.listeners.is_empty() {
            // Without deliveries, the statement is the whole transaction.
            true => self.with(async |conn| statement.fetch_all(conn).await).await?,
            false => self.transaction(async |tx| transition(tx, &self.listeners, statement).await).await?,
        };
        Ok(self.announce_all(rows, cause))
    }

    /// Announces transitions whose transaction is committed, and returns them. Leaves out those that have a word which
    /// this version doesn't know.
    pub(super) fn announce_all(&self, rows: Vec<TransitionRow>, cause: Option<&str>) -> Vec<Transition> {
        // Followers read the whole job: woken by each of its 1,000 exports, they would read a million rows.
        let is_at_rest = |row: &&TransitionRow| !matches!(&*row.job_status, "processing" | "committed");
        for job in rows.iter().filter(is_at_rest).map(|row| row.export.job).collect::<HashSet<_>>() {
            // Sending fails only if there are no followers.
            let _ = self.endings.send(StatusChange { job: job.into(), is_by_worker: self.is_of_workers });
        }
        let transitions = rows.into_iter().map(Transition::try_from);
        let transitions: Vec<_> = transitions.filter_map(skip_unreadable).collect();
        let mut told = HashSet::new();
        for Transition { from, export, .. } in &transitions {
            if *from != export.status {
                self.announce(export, cause, &mut told);
            }
        }
        transitions
    }

    /// If an export has ended, counts the end and writes the log event. `told` are the jobs whose error, which concerns
    /// all of their exports, is logged.
    fn announce(&self, export: &Export, cause: Option<&str>, told: &mut HashSet<JobId>) {
        let labels = ExportLabels { dataset: &export.dataset, export_type: export.export_type.as_str() };
        match export.status {
            Status::Pending | Status::Processing => return,
            Status::Completed => {
                let seconds = seconds(export);
                let (rows, bytes) = (export.rows_exported, export.bytes_written);
                metrics::export_completed(
                    labels,
                    Completed { rows, bytes, late_rows: export.report.late_rows, seconds },
                );
                job_event!(info, export, "export_completed", rowsExported = rows, durationSeconds = seconds);
            }
            Status::Failed => {
                if let Some(failure) = &export.error
                    && failure.dataset.as_ref().is_none_or(|dataset| *dataset == export.dataset)
                {
                    metrics::export_failed(labels, failure.code.as_str());
                    let concerns_all = export.is_of_datasets && failure.dataset.is_none();
                    if !concerns_all || told.insert(export.job) {
                        let error = cause.unwrap_or(&failure.detail);
                        tracing::error!(
                            event = "export_failed",
                            jobId = %export.job,
                            consumerId = export.consumer.as_ref().map(ConsumerId::as_str),
                            dataset = (!concerns_all).then_some(&*export.dataset),
                            exportType = %export.export_type,
                            code = %failure.code,
                            continuity = failure.continuity.map(Continuity::as_str),
                            error
                        );
                    }
                }
            }
            // Most exports of several datasets have nothing to export, often.
            Status::Skipped if export.is_of_datasets => job_event!(debug, export, "export_skipped"),
            Status::Skipped => job_event!(info, export, "export_skipped"),
            Status::Cancelled => job_event!(info, export, "export_cancelled"),
        }
        metrics::export_ended(labels, export.status.as_str());
    }

    /// Subscribes to the jobs that this process ends or returns to the queue from now on. Other processes end jobs as
    /// well.
    pub fn endings(&self) -> Endings {
        Endings(self.endings.subscribe())
    }
}

fn seconds(export: &Export) -> f64 {
    let time = export.started_at.zip(export.finished_at).map(|(started, finished)| finished - started);
    time.and_then(|time| time.to_std().ok()).unwrap_or_default().as_secs_f64()
}

/// A job that this process ended or returned to the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct StatusChange {
    job: JobId,
    /// True if a worker did, after an attempt of its own.
    is_by_worker: bool,
}

/// A subscription to the jobs that this process ends.
#[derive(Debug)]
pub struct Endings(broadcast::Receiver<StatusChange>);

/// A job that may have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Job(JobId),
    /// Any job may have ended. The subscriber was too slow and missed some ends.
    Any,
}

impl Endings {
    pub async fn next(&mut self) -> Ending {
        match self.0.recv().await {
            Ok(change) => Ending::Job(change.job),
            Err(broadcast::error::RecvError::Lagged(_)) => Ending::Any,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }

    /// Waits for the next job that may have ended otherwise than by a worker's own attempt.
    pub async fn next_of_others(&mut self) {
        while self.0.recv().await.is_ok_and(|change| change.is_by_worker) {}
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use sqlx::postgres::PgPoolOptions;

    use super::*;

    #[tokio::test]
    async fn stores_over_two_pools_share_their_endings() {
        let pool = || PgPoolOptions::new().connect_lazy("postgres://nobody@localhost/nowhere").unwrap();
        let worker = Store::new(pool());
        let (job, other) = (JobId::random(), JobId::random());
        let mut endings = worker.over(pool()).endings();
        for ended in [other, job] {
            worker.endings.send(StatusChange { job: ended, is_by_worker: true }).unwrap();
            assert_eq!(endings.next().now_or_never(), Some(Ending::Job(ended)));
        }
        assert_eq!(endings.next().now_or_never(), None, "each ending is received once");
        for _ in 0..100 {
            worker.endings.send(StatusChange { job: other, is_by_worker: true }).unwrap();
        }
        assert_eq!(endings.next().now_or_never(), Some(Ending::Any), "a slow subscriber learns that it missed some");
    }
}
