//! The queue: who may work on which job. `exports` is the queue; a lease with a random token is the right to one
//! attempt.
//!
//! Every write after the claim names the token and counts its rows, so that a worker which lost its lease changes
//! nothing. Time is the database's `clock_timestamp()` alone, and decides only when a job is taken over.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::connection::failure::SqlFailure;
use crate::connection::statement::with_pieces;
use crate::duration;
use crate::file::hidden::HiddenFile;
use crate::job::{Failure, FailureCode, LeaseToken};
use crate::store::job_row::{JOB_COLUMNS, JobRow, with_job_columns};
use crate::store::lease::Lease;
use crate::store::transitions::Transition;
use crate::store::{ClaimScanStart, Error, Store};
use crate::trace::TraceParent;
use pg_rows::encoding::{Compression, Format};

/// The formats that this build writes.
fn known_formats() -> Vec<&'static str> {
    Format::ALL.iter().filter(|format| format.spec().is_built).map(|format| format.as_str()).collect()
}

fn known_compressions() -> Vec<&'static str> {
    Compression::ALL.iter().map(|compression| compression.as_str()).collect()
}

/// The time for which a claim scan start is used. A job whose time somebody set back by hand waits no longer than this.
const SCAN_START_TTL: Duration = Duration::from_secs(5);

/// The largest part by which the pause before a retry is shortened or lengthened.
const RETRY_JITTER: f64 = 0.2;

/// The pause after so many attempts, counted from 1: two seconds, three times as many after each further one, ten
/// minutes at most.
fn retry_pause(attempts: u32) -> Duration {
    let seconds = 3_u64.saturating_pow(attempts.saturating_sub(1)).saturating_mul(2);
    Duration::from_secs(seconds.min(600))
}

/// The longest pauses, in seconds, after one attempt, after two and so on; the last one is that of all further ones.
fn longest_retry_pauses() -> Vec<f64> {
    (1..=7).map(|attempts| retry_pause(attempts).mul_f64(1.0 + RETRY_JITTER).as_secs_f64()).collect()
}

/// The process that claims.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'a> {
    /// The name that people see in `lease_owner`.
    pub owner: &'a str,
    /// The datasets in its catalog.
    pub datasets: &'a [String],
    /// The id of the destination that it writes to.
    pub destination: Option<Uuid>,
}

#[derive(sqlx_macros::FromRow)]
struct ClaimedJobRow {
    #[sqlx(flatten)]
    job: JobRow,
    database: String,
}

/// The condition of a job that a process may claim.
const CLAIMABLE: (&str, &str) = ("queue/claimable.sql", include_str!("queue/claimable.sql"));

/// Claims the oldest job that is ready, of those that were not ready before `scan_start`.
async fn claim(
    conn: &mut PgConnection,
    claimant: &Claimant<'_>,
    lease: Duration,
    scan_start: DateTime<Utc>,
) -> Result<Option<Lease>, Error> {
    let token = LeaseToken::random();
    let pieces = [CLAIMABLE, JOB_COLUMNS];
    let statement = with_pieces(include_str!("queue/claim.sql"), &pieces);
    let claimed: Result<Option<ClaimedJobRow>, sqlx::Error> = sqlx::query_as(AssertSqlSafe(statement))
        .bind(known_formats())
        .bind(known_compressions())
        .bind(claimant.datasets)
        .bind(claimant.destination)
        .bind(token.as_uuid())
        .bind(claimant.owner)
        .bind(lease.as_secs_f64())
        .bind(scan_start)
        .fetch_optional(conn)
        .await;
    match claimed {
        Ok(None) => Ok(None),
        Ok(Some(ClaimedJobRow { job, database })) => Ok(Some(Lease::new(job.try_into()?, database.parse()?, token))),
        // Another job of the lane was claimed at the same moment.
        Err(error) if SqlFailure::of(&error) == SqlFailure::Duplicate => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns a time before which no job is ready. While some export holds an old snapshot, the index keeps an entry for
/// each job that has left the queue since. A scan from the index's end would read all of them for each claim.
async fn scan_start(conn: &mut PgConnection, claimant: &Claimant<'_>) -> Result<DateTime<Utc>, sqlx::Error> {
    sqlx::query_scalar(AssertSqlSafe(with_pieces(include_str!("queue/scan_start.sql"), &[CLAIMABLE])))
        .bind(known_formats())
        .bind(known_compressions())
        .bind(claimant.datasets)
        .bind(claimant.destination)
        .fetch_one(conn)
        .await
}

/// A hidden file of an attempt that has ended without completing its job, or of a publisher.
#[derive(Debug)]
pub struct EndedAttempt {
    /// The file that was left.
    pub file: HiddenFile,
    /// True if nobody writes the file any more, and nobody needs it. Nothing is known of a job that is not in the
    /// database: it may be that of a clone, which has the same identity. A publisher's file has its final name in a
    /// moment, or is written again.
    pub is_removable: bool,
}

/// The state in which a worker leaves a job that it didn't complete.
#[derive(Clone, Debug)]
pub enum Settlement {
    /// Try again after a while, unless the attempts are spent.
    Retry(Failure),
    /// Don't try again.
    Fail(Failure),
    /// Another worker may go on at once; the attempt doesn't count.
    Release,
}

impl Store {
    /// Takes the oldest ready job of a lane in which no earlier job is open, or completed without its file's name.
    ///
    /// A job belongs to the destination of the process that accepted it, which will serve its file, while any process
    /// with that destination lives. A job of a format or dataset that this process doesn't know is left to a process
    /// that does.
    pub async fn claim(&self, claimant: &Claimant<'_>, lease: Duration) -> Result<Option<Lease>, Error> {
        self.with(async |conn| {
            let known = *self.scan_start.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = known.filter(|known| known.read_at.elapsed() < SCAN_START_TTL)
                && let Some(lease) = claim(conn, claimant, lease, known.run_at).await?
            {
                return Ok(Some(lease));
            }
            // A job that waited for an earlier one of its lane may be ready now, with a time before the known one.
            let new = ClaimScanStart { run_at: scan_start(conn, claimant).await?, read_at: Instant::now() };
            *self.scan_start.lock().unwrap_or_else(PoisonError::into_inner) = Some(new);
            claim(conn, claimant, lease, new.run_at).await
        })
        .await
    }

    /// Says where a claimed job belongs in a trace, if nothing was said of that.
    pub async fn begin_trace(&self, lease: &Lease, place: TraceParent) -> Result<(), Error> {
        let statement = sqlx::query(
            "-- store.queue.begin_trace
             update exports set traceparent = $3 where id = $1 and lease_token = $2 and traceparent is null",
        )
        .bind(lease.job.id.as_uuid())
        .bind(lease.token().as_uuid())
        .bind(place.to_string());
        self.execute(statement).await.map(drop)
    }

    /// Leaves a job: it is pending, failed or cancelled then. `None`: it wasn't this lease's to leave. `cause` is the
    /// attempt's error with its causes, for the log.
    ///
    /// Waits for a commit of this attempt that is still under way, since that holds the row; so after `Some` such a
    /// commit can't happen any more.
    pub async fn settle(
        &self,
        lease: &Lease,
        settlement: &Settlement,
        cause: &str,
    ) -> Result<Option<Transition>, Error> {
        let pause = duration::spread(retry_pause(lease.job.attempt), RETRY_JITTER);
        let (fatal, refund, failure, pause) = match settlement {
            Settlement::Retry(failure) => (false, 0, Some(failure), pause),
            Settlement::Fail(failure) => (true, 0, Some(failure), pause),
            Settlement::Release => (false, 1, None, Duration::ZERO),
        };
        let statement = sqlx::query_as(with_job_columns(include_str!("queue/settle.sql")))
            .bind(lease.job.id.as_uuid())
            .bind(lease.token().as_uuid())
            .bind(fatal)
            .bind(refund)
            .bind(failure.map(|f| f.code.as_str()))
            .bind(failure.map(|f| f.detail.as_str()))
            .bind(failure.and_then(|f| f.continuity).map(|why| why.as_str()))
            .bind(pause.as_secs_f64());
        self.transition(statement, Some(cause)).await
    }

    /// Repairs times that lie too far in the future because the database's clock was set back.
    /// Pending jobs become ready, and leases are shortened. The service itself never sets a time that far ahead.
    ///
    /// A lease is shortened to four of this process's, so that a worker with a longer one of its own has time to renew
    /// it.
    pub async fn repair_future_timestamps(&self, lease: Duration) -> Result<(), Error> {
        let statement = sqlx::query(include_str!("queue/repair_future_timestamps.sql"))
            .bind(lease.as_secs_f64())
            .bind(longest_retry_pauses());
        self.execute(statement).await.map(drop)
    }

    /// Takes over the jobs of vanished workers: they are pending again, or failed once their attempts are spent.
    ///
    /// Passes over a locked row, whose worker may just be committing it.
    pub async fn reap(&self) -> Result<Vec<Transition>, Error> {
        let statement = sqlx::query_as(with_job_columns(include_str!("queue/reap.sql")))
            .bind(FailureCode::AttemptsExhausted.as_str());
        self.transition_all(statement).await
    }

    /// Returns those of the hidden files that were left by attempts which ended without completing their jobs.
    ///
    /// A folder may be shared with the service of another database, also of a copy of this one: that service's files
    /// are not among those returned. Files that name this database are returned also where it was restored to before it
    /// knew the job.
    pub async fn ended_attempts(&self, hidden: Vec<HiddenFile>) -> Result<Vec<EndedAttempt>, Error> {
        let (ids, tokens): (Vec<Uuid>, Vec<Uuid>) =
            hidden.iter().map(|file| (file.job.as_uuid(), file.token.as_uuid())).unzip();
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

    /// Records that a process with this destination lives, once in ten seconds at most.
    pub async fn record_destination(&self, destination: Uuid) -> Result<(), Error> {
        let statement = sqlx::query(
            "-- store.queue.record_destination
             insert into cdc_export.destinations as d (id, seen_at) values ($1, clock_timestamp())
             on conflict (id) do update set seen_at = excluded.seen_at
             -- Also where the clock was set back: in times to come nobody was seen.
             where d.seen_at not between clock_timestamp() - interval '10 seconds' and clock_timestamp()",
        )
        .bind(destination);
        self.execute(statement).await.map(drop)
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
