//! Claims jobs for workers, and takes them back. `cdc_export.jobs` is the queue. A lease with a random token is the
//! right to one attempt.
//!
//! Every write after the claim names the token and counts its rows, so a worker that lost its lease changes nothing.
//! All times come from the database's `clock_timestamp()`. They decide only when a job is taken over.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, Row};
use uuid::Uuid;

use crate::job::{Export, Failure, FailureCode, LeaseToken};
use crate::store::export_row::{EXPORT_COLUMNS, ExportRow, parsed, with_export_columns};
use crate::store::lease::{ChainLink, Lease, LeasedExport};
use crate::store::transitions::Transition;
use crate::store::{Error, Store};
use crate::trace::TraceParent;
use cdc_destination::HiddenFile;
use pg_rows::encoding::Format;
use pg_session::statement::with_pieces;

pub(super) fn built_formats() -> Vec<&'static str> {
    Format::ALL.iter().filter(|format| format.spec().is_built).map(|format| format.as_str()).collect()
}

/// The fraction by which the pause before a retry is randomly shortened or lengthened.
const RETRY_JITTER: f64 = 0.2;

/// The longest time for which the jobs of a dataset wait after an attempt found its table locked. `ready.sql` and
/// `claim.sql` have the same number.
const MAX_LOCK_PAUSE: Duration = Duration::from_secs(10);

/// The pauses in seconds after an attempt gave way for the first time, and so on. After the last one the job fails.
/// `repair_future_timestamps.sql` and `due/open.sql` count on none above 900.
const GIVE_WAY_PAUSES: [f64; 5] = [10.0, 60.0, 300.0, 900.0, 900.0];

/// Returns the pause after the given number of attempts. The first pause is two seconds, each further one three times
/// as long, up to ten minutes.
fn retry_pause(attempts: u32) -> Duration {
    let seconds = 3_u64.saturating_pow(attempts.saturating_sub(1)).saturating_mul(2);
    Duration::from_secs(seconds.min(600))
}

/// Returns the longest pauses in seconds, after one attempt, two attempts and so on. The last entry applies to all
/// further attempts.
pub(super) fn longest_retry_pauses() -> Vec<f64> {
    (1..=7).map(|attempts| retry_pause(attempts).mul_f64(1.0 + RETRY_JITTER).as_secs_f64()).collect()
}

#[derive(Clone, Copy, Debug)]
pub struct Claimant<'a> {
    /// The name of the process in `lease_owner`, for people.
    pub owner: &'a str,
    pub datasets: &'a [String],
    pub destination: Option<Uuid>,
    /// The name of the session that will commit the export. If it ends before, another process takes the job over.
    pub session: Option<&'a str>,
}

impl LeasedExport {
    /// Reads a row of `claim.sql`.
    fn read(row: &PgRow) -> Result<LeasedExport, Error> {
        let export: Export = ExportRow::from_row(row)?.try_into()?;
        let number = row.try_get::<i64, _>("next_number")?.unsigned_abs();
        let link = ChainLink { number, previous: row.try_get("previous")? };
        Ok(LeasedExport { link: Some(link).filter(|_| export.consumer.is_some()), export })
    }
}

/// The condition under which a process may claim a job.
pub(super) const READY: (&str, &str) = ("queue/ready.sql", include_str!("queue/ready.sql"));

/// The condition under which a running job has lost its session.
pub(super) const ORPHANED: (&str, &str) = ("queue/orphaned.sql", include_str!("queue/orphaned.sql"));

/// A hidden file of an attempt that has ended without completing its job, or of a publisher.
#[derive(Debug)]
pub struct EndedAttempt {
    pub file: HiddenFile,
    /// True if no process writes the file any more or needs it.
    ///
    /// False for a job that the database doesn't know: it may belong to a clone, which has the same identity. False for
    /// a file that a publisher is about to give its final name, or to write again.
    pub is_removable: bool,
}

#[derive(Debug)]
pub struct Claim {
    /// `None` if no job is ready.
    pub lease: Option<Lease>,
    /// True if another job waits: for a worker, for another job, or for another process.
    pub has_others: bool,
}

/// The way in which a worker ends an attempt without completing the job.
#[derive(Clone, Debug)]
pub enum Settlement {
    /// Retry the job after a pause, unless no attempts are left.
    Retry(Failure),
    /// Retry the job as above. Its table was locked, so the other jobs of the dataset wait, too.
    RetryLocked(Failure),
    /// Retry the job after a longer pause, without counting the attempt. It ended for a session that waited for it.
    GiveWay(Failure),
    Fail(Failure),
    /// Return the job to the queue at once, without counting the attempt.
    Release,
}

impl Store {
    /// Claims the ready job with the first turn. Skips a job with a lane in which an earlier export is open, or is
    /// completed and not published yet. Skips a dataset whose table was locked a moment ago, or is being tried again.
    ///
    /// A job belongs to the destination of the process that accepted it, and that destination serves its file. Another
    /// destination may claim the job only if the first one is [abandoned](Store::abandoned). A process leaves jobs with
    /// a format or dataset that it doesn't know to other processes.
    pub async fn claim(&self, claimant: &Claimant<'_>, lease: Duration) -> Result<Claim, Error> {
        let token = LeaseToken::random();
        let statement = with_pieces(include_str!("queue/claim.sql"), &[READY, EXPORT_COLUMNS]);
        let statement = sqlx::query(AssertSqlSafe(statement))
            .bind(built_formats())
            .bind(claimant.datasets)
            .bind(claimant.destination)
            .bind(self.abandoned())
            .bind(token.as_uuid())
            .bind(claimant.owner)
            .bind(lease.as_secs_f64())
            .bind(claimant.session);
        let rows = self.with(async |conn| statement.fetch_all(conn).await).await?;
        *self.claims_fail_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let has_others = first.try_get("has_others")?;
        if first.try_get::<Option<Uuid>, _>("job")?.is_none() {
            return Ok(Claim { lease: None, has_others });
        }
        self.has_claimed.store(true, Ordering::Relaxed);
        let (database, is_trial) = (parsed(first, "database")?, first.try_get("is_trial")?);
        let exports = rows.iter().map(LeasedExport::read).collect::<Result<_, _>>()?;
        Ok(Claim { lease: Some(Lease { exports, database, is_trial, token }), has_others })
    }

    /// Records the trace context of a claimed job, unless the job has one already.
    pub async fn begin_trace(&self, lease: &Lease, place: TraceParent) -> Result<(), Error> {
        let statement = sqlx::query(
            "-- store.queue.begin_trace
             update cdc_export.jobs set traceparent = $3 where id = $1 and lease_token = $2 and traceparent is null",
        )
        .bind(lease.id().as_uuid())
        .bind(lease.token().as_uuid())
        .bind(place.to_string());
        self.execute(statement).await.map(drop)
    }

    /// Ends an attempt without completing its job, which becomes pending, failed or cancelled. Returns its first
    /// export, or `None` if the lease was lost.
    ///
    /// `cause` is the error of the attempt with its causes, for the log. If the job heals, its exports of the datasets
    /// that `need_full` become full ones, and it is pending.
    ///
    /// Waits for a running commit of this attempt, because that commit holds the row's lock. So after `Some`, such a
    /// commit can't happen any more.
    pub async fn settle(
        &self,
        lease: &Lease,
        need_full: &[&str],
        settlement: &Settlement,
        cause: &str,
    ) -> Result<Option<Transition>, Error> {
        let pause = http_client::pause::spread(retry_pause(lease.first().attempt), RETRY_JITTER);
        let is_locked = matches!(settlement, Settlement::RetryLocked(_));
        let (fatal, refund, failure, pause) = match settlement {
            Settlement::Retry(failure) | Settlement::RetryLocked(failure) => (false, 0, Some(failure), pause),
            Settlement::GiveWay(failure) => (false, 1, Some(failure), pause),
            Settlement::Fail(failure) => (true, 0, Some(failure), pause),
            Settlement::Release => (false, 1, None, Duration::ZERO),
        };
        let statement = sqlx::query_as(with_export_columns(include_str!("queue/settle.sql")))
            .bind(lease.id().as_uuid())
            .bind(lease.token().as_uuid())
            .bind(fatal)
            .bind(refund)
            .bind(failure.map(|f| f.code.as_str()))
            .bind(failure.map(|f| f.detail.as_str()))
            .bind(failure.and_then(|f| f.dataset.as_deref()))
            .bind(failure.and_then(|f| f.continuity).map(|why| why.as_str()))
            .bind(pause.as_secs_f64())
            .bind(is_locked.then(|| pause.min(MAX_LOCK_PAUSE).as_secs_f64()))
            .bind(need_full)
            .bind(matches!(settlement, Settlement::GiveWay(_)).then_some(GIVE_WAY_PAUSES.as_slice()));
        Ok(self.transition(statement, Some(cause)).await?.into_iter().next())
    }

    /// Moves the open exports of lanes behind the exports that the destination has of them. Each lane is given by its
    /// dataset, with the place of that export.
    pub async fn raise_lanes(&self, lease: &Lease, lanes: &[(&str, i64)]) -> Result<(), Error> {
        let (datasets, marked): (Vec<_>, Vec<_>) = lanes.iter().copied().unzip();
        self.transaction(async |tx| {
            // As a new job does, before its exports get their places.
            sqlx::query(
                "-- store.queue.lock_lanes
                 select from cdc_export.lanes l
                 where l.consumer_id = $1 and l.dataset = any ($2) order by l.dataset for update of l",
            )
            .bind(lease.first().consumer.as_ref().map(|consumer| consumer.as_str()))
            .bind(&datasets)
            .execute(&mut *tx)
            .await?;
            let raise = sqlx::query(include_str!("queue/raise_lanes.sql")).bind(lease.id().as_uuid()).bind(&datasets);
            raise.bind(&marked).bind(lease.token().as_uuid()).execute(tx).await.map(drop)
        })
        .await
    }

    /// Records that the tables of an attempt are not locked any more. The jobs that waited for them are ready again.
    pub async fn table_opened(&self, lease: &Lease) -> Result<(), Error> {
        let statement = sqlx::query(
            "-- store.queue.table_opened
             delete from cdc_export.locked_datasets
             where name = any ($1)
               and exists (select from cdc_export.jobs own where own.id = $2 and own.lease_token = $3)",
        )
        .bind(lease.exports().map(|export| &*export.dataset).collect::<Vec<_>>())
        .bind(lease.id().as_uuid())
        .bind(lease.token().as_uuid());
        self.execute(statement).await.map(drop)
    }

    /// Repairs times of jobs and deliveries that lie in the future: the database's clock was set back. So nothing waits
    /// until the clock gets there again.
    pub async fn repair_future_timestamps(&self, lease: Duration) -> Result<(), Error> {
        let statement = sqlx::query(include_str!("queue/repair_future_timestamps.sql"))
            .bind(lease.as_secs_f64())
            .bind(longest_retry_pauses());
        self.execute(statement).await.map(drop)
    }

    /// Lets the leases of jobs whose sessions have ended run out in a second. The jobs of a killed worker then need not
    /// wait for the whole lease.
    pub async fn shorten_orphaned(&self) -> Result<(), Error> {
        let statement = with_pieces(include_str!("queue/shorten_orphaned.sql"), &[ORPHANED]);
        self.execute(sqlx::query(AssertSqlSafe(statement))).await.map(drop)
    }

    /// Takes back the jobs of vanished workers. They become pending, or failed if no attempts are left, or cancelled if
    /// a client asked for it. Returns their exports.
    ///
    /// Skips locked rows, because their workers may be committing them.
    pub async fn reap(&self) -> Result<Vec<Transition>, Error> {
        let statement = sqlx::query_as(with_export_columns(include_str!("queue/reap.sql")))
            .bind(FailureCode::AttemptsExhausted.as_str());
        self.transition(statement, None).await
    }

    /// Fails the waiting jobs of datasets that no process has: for at least ten minutes, since replicas may get the
    /// operator's file at different times, and for at most two hours. `own` are the datasets of this process.
    pub async fn fail_unknown(&self, own: &[String]) -> Result<(), Error> {
        let statement = sqlx::query_as(with_export_columns(include_str!("queue/fail_unknown.sql")))
            .bind(own)
            .bind(FailureCode::DatasetUnknown.as_str())
            .bind("no process has the dataset any more: it left the datasets file, or its table is gone");
        self.transition(statement, None).await.map(drop)
    }

    /// Returns those of these hidden files that are left over from attempts that ended without completing their jobs.
    ///
    /// The folder may be shared with the service of another database, or of a copy of this one. The files of that
    /// service are not returned. Files that name this database are returned even if the database was restored to a time
    /// before it knew the job.
    pub async fn ended_attempts(&self, hidden: Vec<HiddenFile>) -> Result<Vec<EndedAttempt>, Error> {
        let (ids, tokens): (Vec<Uuid>, Vec<Uuid>) = hidden.iter().map(|file| (file.job.as_uuid(), file.token)).unzip();
        let databases: Vec<_> = hidden.iter().map(|file| file.database.as_str()).collect();
        let markers: Vec<_> = hidden.iter().map(HiddenFile::is_marker).collect();
        let statement = sqlx::query_as(include_str!("queue/ended_attempts.sql"))
            .bind(ids)
            .bind(tokens)
            .bind(databases)
            .bind(markers);
        let ended: Vec<(i64, bool)> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        let ended: HashMap<i64, bool> = ended.into_iter().collect();
        let ended = (1..).zip(hidden).filter_map(|(place, file)| {
            let is_removable = *ended.get(&place)?;
            Some(EndedAttempt { file, is_removable })
        });
        Ok(ended.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_pauses_grow_up_to_ten_minutes() {
        let pauses = (0..=8).map(|attempts| retry_pause(attempts).as_secs());
        assert_eq!(pauses.collect::<Vec<_>>(), [2, 2, 6, 18, 54, 162, 486, 600, 600]);
        assert_eq!(retry_pause(u32::MAX).as_secs(), 600);
        assert_eq!(longest_retry_pauses().last(), Some(&720.0), "no further attempt has a longer pause");
    }
}
