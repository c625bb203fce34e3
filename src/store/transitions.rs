//! A job's transitions after its claim: each statement that changes a status then runs in [`step`] or `Store::transitions`, and what it
//! changed is told in one place, `Store::tell`.
//!
//! What must be true together with a transition belongs into its transaction, beside [`step`], as do the deliveries of an end's event. What
//! only has to be heard of it in this process belongs into `tell`: the process whose statement ended a job counts the end, logs it and wakes
//! the job's followers. Of all processes at most one does: none, where that process dies between the two, or the statement's answer is lost.

use sqlx::postgres::PgArguments;
use sqlx::query::QueryAs;
use sqlx::{PgConnection, Postgres};
use tokio::sync::broadcast;

use crate::event::Listener;
use crate::job::{Continuity, Job, JobId, Status};
use crate::store::job_row::{JobRow, skip_unreadable};
use crate::store::{Error, Store, deliveries};
use crate::telemetry::job_event;
use crate::telemetry::metrics::{self, Completed, ExportLabels};

/// What a statement made of a job.
#[derive(Clone, Debug)]
pub struct Transition {
    /// The job's status before, as clients saw it.
    pub from: Status,
    /// The job after the transition, as clients see it: a committed job is still processing until its file has its name.
    pub job: Job,
}

/// What a statement of a transition returns: `was`, which is the status before, and the job's columns.
#[derive(sqlx_macros::FromRow)]
pub(super) struct TransitionRow {
    was: String,
    #[sqlx(flatten)]
    job: JobRow,
}

impl TryFrom<TransitionRow> for Transition {
    type Error = Error;

    fn try_from(row: TransitionRow) -> Result<Transition, Error> {
        Ok(Transition { from: row.was.parse()?, job: row.job.try_into()? })
    }
}

type Statement<'q> = QueryAs<'q, Postgres, TransitionRow, PgArguments>;

/// Runs a statement that changes one job's status, in a transaction, and writes down which listeners are to be told of its end. `None`: it
/// changed nothing.
pub(super) async fn step(
    conn: &mut PgConnection,
    listeners: &[Listener],
    statement: Statement<'_>,
) -> Result<Option<TransitionRow>, Error> {
    let row = statement.fetch_optional(&mut *conn).await?;
    plan_deliveries(conn, listeners, row.as_slice()).await?;
    Ok(row)
}

async fn plan_deliveries(conn: &mut PgConnection, listeners: &[Listener], rows: &[TransitionRow]) -> Result<(), Error> {
    // Of a job that was asked to stop clients see no other status.
    let changed: Vec<_> = rows.iter().filter(|row| row.was != row.job.status).map(|row| &row.job).collect();
    deliveries::plan(conn, listeners, &changed).await
}

impl Store {
    /// Runs a statement that changes one job's status, in a transaction of its own, and tells what it changed. `cause` is the error that
    /// ended the job, with its causes, for the log.
    pub(super) async fn transition(
        &self,
        statement: Statement<'_>,
        cause: Option<&str>,
    ) -> Result<Option<Transition>, Error> {
        let row = self.transaction(async |tx| step(tx, &self.listeners, statement).await).await?;
        row.map(|row| self.told(row, cause)).transpose()
    }

    /// Runs a statement that changes many jobs' statuses, in a transaction of its own, and tells what it changed.
    pub(super) async fn transitions(&self, statement: Statement<'_>) -> Result<Vec<Transition>, Error> {
        let changed = self.transaction::<_, Error>(async |tx| {
            let rows = statement.fetch_all(&mut *tx).await?;
            plan_deliveries(tx, &self.listeners, &rows).await?;
            Ok(rows)
        });
        let rows = changed.await?;
        Ok(rows.into_iter().filter_map(|row| skip_unreadable(self.told(row, None))).collect())
    }

    /// Tells of a transition whose transaction is committed, and returns it.
    ///
    /// # Errors
    /// If this version doesn't know a word of the job's. The transition has happened.
    pub(super) fn told(&self, row: TransitionRow, cause: Option<&str>) -> Result<Transition, Error> {
        let transition = Transition::try_from(row)?;
        if transition.from != transition.job.status {
            self.tell(&transition.job, cause);
        }
        Ok(transition)
    }

    /// Tells the job's followers of its new status, and of an end the log and the metrics.
    fn tell(&self, job: &Job, cause: Option<&str>) {
        // Without followers nobody listens.
        let _ = self.endings.send(job.id);
        let labels = ExportLabels { dataset: &job.dataset, export_type: job.export_type.as_str() };
        match job.status {
            Status::Pending | Status::Processing => return,
            Status::Completed => {
                let seconds = seconds(job);
                let (rows, bytes) = (job.rows_exported, job.bytes_written);
                metrics::job_completed(labels, Completed { rows, bytes, late_rows: job.late_rows, seconds });
                job_event!(info, job, "export_completed", rowsExported = rows, durationSeconds = seconds);
            }
            Status::Failed => {
                if let Some(failure) = &job.error {
                    metrics::job_failed(labels, failure.code.as_str());
                    let error = cause.unwrap_or(&failure.detail);
                    let continuity = failure.continuity.map(Continuity::as_str);
                    job_event!(error, job, "export_failed", code = %failure.code, continuity, error);
                }
            }
            Status::Cancelled => job_event!(info, job, "export_cancelled"),
        }
        metrics::job_ended(labels, job.status.as_str());
    }

    /// Tells from now on which jobs this process brings to their end, or back into the queue. A hint: other processes end jobs too.
    pub fn endings(&self) -> Endings {
        Endings(self.endings.subscribe())
    }
}

/// From the start of a job's first attempt to the commit.
fn seconds(job: &Job) -> f64 {
    let time = job.started_at.zip(job.finished_at).map(|(started, finished)| finished - started);
    time.and_then(|time| time.to_std().ok()).unwrap_or_default().as_secs_f64()
}

/// Hints that a job has ended.
#[derive(Debug)]
pub struct Endings(broadcast::Receiver<JobId>);

/// What has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// This job.
    Job(JobId),
    /// More jobs than could be told: it may be any.
    Any,
}

impl Endings {
    /// Waits for the next end.
    pub async fn next(&mut self) -> Ending {
        match self.0.recv().await {
            Ok(job) => Ending::Job(job),
            Err(broadcast::error::RecvError::Lagged(_)) => Ending::Any,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use sqlx::postgres::PgPoolOptions;

    use super::*;

    #[tokio::test]
    async fn what_one_pool_sees_end_another_tells() {
        let pool = || PgPoolOptions::new().connect_lazy("postgres://nobody@localhost/nowhere").unwrap();
        let worker = Store::new(pool());
        let (job, other) = (JobId::random(), JobId::random());
        let mut endings = worker.over(pool()).endings();
        for ended in [other, job] {
            worker.endings.send(ended).unwrap();
            assert_eq!(endings.next().now_or_never(), Some(Ending::Job(ended)));
        }
        assert_eq!(endings.next().now_or_never(), None, "it is told once");
        for _ in 0..100 {
            worker.endings.send(other).unwrap();
        }
        assert_eq!(endings.next().now_or_never(), Some(Ending::Any), "it may be among those that were missed");
    }
}
