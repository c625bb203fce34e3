//! Changes the status of a job after its claim, and announces the change.
//!
//! [`transition`] runs the statement that changes the status. It records the deliveries of the job's end in the same
//! transaction. So a delivery exists if and only if the transition committed.
//!
//! After the commit, [`Store::announce`] counts the end in the metrics, writes the log event and wakes the job's
//! followers. At most one process announces each end. If that process dies after the commit, or loses the answer to the
//! commit, nothing is announced. So nothing that must never be missing belongs there.

use sqlx::postgres::PgArguments;
use sqlx::query::QueryAs;
use sqlx::{PgConnection, Postgres};
use tokio::sync::broadcast;

use crate::event::Listener;
use crate::job::{Continuity, FailureCode, Job, JobId, Status};
use crate::store::job_row::{JobRow, skip_unreadable};
use crate::store::{Error, Store, deliveries};
use crate::telemetry::job_event;
use crate::telemetry::metrics::{self, Completed, ExportLabels};

/// A committed change of a job's status.
#[derive(Clone, Debug)]
pub struct Transition {
    /// The status before the transition, as clients saw it.
    pub from: Status,
    /// The job after the transition, as clients see it. A committed job is still `processing` until its file is
    /// published.
    pub job: Job,
    /// The name of the session of the attempt that was taken back, if one was.
    pub session: Option<String>,
}

/// A change of a job's status, in a transaction that may not be committed yet. A statement returns it as the column
/// `was` and the columns of the job.
#[derive(sqlx_macros::FromRow)]
pub(super) struct TransitionRow {
    /// The status before the transition, as clients saw it.
    was: String,
    /// The name of the session of an attempt that is taken back.
    #[sqlx(default)]
    session: Option<String>,
    #[sqlx(flatten)]
    job: JobRow,
}

impl TryFrom<TransitionRow> for Transition {
    type Error = Error;

    fn try_from(row: TransitionRow) -> Result<Transition, Error> {
        Ok(Transition { from: row.was.parse()?, job: row.job.try_into()?, session: row.session })
    }
}

/// A statement that changes statuses, and returns a row for each job that it changed.
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

/// Inserts the deliveries of the jobs of no batch whose status changed for clients, and of the batches that have ended.
/// The status of a job whose cancellation was only requested has not changed.
///
/// The transaction that ends the last open member of a batch must find that all members have ended. So it ends all open
/// members at once, or has called [`lock_batch`].
async fn plan_deliveries(conn: &mut PgConnection, listeners: &[Listener], rows: &[TransitionRow]) -> Result<(), Error> {
    if listeners.is_empty() {
        return Ok(());
    }
    let changed = || rows.iter().filter(|row| row.was != row.job.status).map(|row| &row.job);
    let jobs: Vec<_> = changed().filter(|job| job.batch_id.is_none()).collect();
    let mut batches: Vec<_> = changed().filter_map(|job| job.batch_id).collect();
    batches.sort_unstable();
    batches.dedup();
    deliveries::plan(conn, listeners, &jobs, &batches).await
}

/// Locks a batch until the transaction ends: transactions that end its committed members run one after the other.
///
/// Two processes may end the last two members at the same moment. Without the lock, each of them would see the other's
/// member open, and neither would record the event of the batch. A statement sees what was committed before its start.
/// So the lock is a statement before those that end the member and read the others.
///
/// The lock is that of the first member's row, which has the smallest id. Other transactions that lock several members,
/// such as a cancellation that waited for the commit, lock them in the order of their ids. So there is no deadlock.
async fn lock_batch(conn: &mut PgConnection, batch: JobId) -> Result<(), Error> {
    sqlx::query("-- store.transitions.lock_batch\n select from exports where id = $1 for update")
        .bind(batch.as_uuid())
        .execute(conn)
        .await?;
    Ok(())
}

impl Store {
    /// Runs a statement that changes the statuses of jobs in a transaction of its own, and announces the changes.
    /// `batch` is the batch whose committed member the statement ends. `cause` is the error that ended the jobs, with
    /// its causes, for the log.
    pub(super) async fn transition(
        &self,
        batch: Option<JobId>,
        statement: Statement<'_>,
        cause: Option<&str>,
    ) -> Result<Vec<Transition>, Error> {
        let rows = match self.listeners.is_empty() {
            // Without deliveries, the statement is the whole transaction.
            true => self.with(async |conn| statement.fetch_all(conn).await).await?,
            false => {
                let changed = self.transaction(async |tx| {
                    if let Some(batch) = batch {
                        lock_batch(tx, batch).await?;
                    }
                    transition(tx, &self.listeners, statement).await
                });
                changed.await?
            }
        };
        Ok(rows.into_iter().filter_map(|row| skip_unreadable(self.announce(row, cause))).collect())
    }

    /// Announces a transition whose transaction is committed, and returns it.
    ///
    /// # Errors
    /// If this version doesn't know a word in the job's row. The transition is committed all the same.
    pub(super) fn announce(&self, row: TransitionRow, cause: Option<&str>) -> Result<Transition, Error> {
        let transition = Transition::try_from(row)?;
        if transition.from != transition.job.status {
            self.announce_status(&transition.job, cause);
        }
        Ok(transition)
    }

    /// Wakes the job's followers. If the job has ended, counts the end and writes the log event.
    fn announce_status(&self, job: &Job, cause: Option<&str>) {
        // Sending fails only if there are no followers.
        let _ = self.endings.send(StatusChange { job: job.id, is_by_worker: self.is_of_workers });
        let labels = ExportLabels { dataset: &job.dataset, export_type: job.export_type.as_str() };
        match job.status {
            Status::Pending | Status::Processing => return,
            Status::Completed => {
                let seconds = seconds(job);
                let (rows, bytes) = (job.rows_exported, job.bytes_written);
                metrics::job_completed(labels, Completed { rows, bytes, late_rows: job.report.late_rows, seconds });
                job_event!(info, job, "export_completed", rowsExported = rows, durationSeconds = seconds);
            }
            Status::Failed => {
                if let Some(failure) = &job.error {
                    metrics::job_failed(labels, failure.code.as_str());
                    let error = cause.unwrap_or(&failure.detail);
                    let continuity = failure.continuity.map(Continuity::as_str);
                    // The log has the cause with the member that ended the attempt.
                    if failure.code != FailureCode::BatchMemberFailed {
                        job_event!(error, job, "export_failed", code = %failure.code, continuity, error);
                    }
                }
            }
            // Most members of a batch have nothing to export, often.
            Status::Skipped if job.batch.is_some() => job_event!(debug, job, "export_skipped"),
            Status::Skipped => job_event!(info, job, "export_skipped"),
            Status::Cancelled => job_event!(info, job, "export_cancelled"),
        }
        metrics::job_ended(labels, job.status.as_str());
    }

    /// Subscribes to the jobs that this process ends or returns to the queue from now on. Other processes end jobs as
    /// well.
    pub fn endings(&self) -> Endings {
        Endings(self.endings.subscribe())
    }
}

/// Returns the seconds from the start of a job's first attempt to the commit.
fn seconds(job: &Job) -> f64 {
    let time = job.started_at.zip(job.finished_at).map(|(started, finished)| finished - started);
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
