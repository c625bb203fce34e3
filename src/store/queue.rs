//! The queue: who may work on which job. `exports` is the queue; a lease with a random token is the right to one attempt.
//!
//! Every write after the claim names the token and counts its rows, so that a worker which lost its lease changes nothing.
//! Time is the database's `clock_timestamp()` alone, and decides only when a job is taken over.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::connection::failure::SqlFailure;
use crate::duration;
use crate::file::hidden::HiddenFile;
use crate::job::{Failure, FailureCode, LeaseToken};
use crate::store::job_row::{JobRow, job_columns};
use crate::store::lease::Lease;
use crate::store::transitions::{Transition, TransitionRow};
use crate::store::{Error, Front, Store};
use crate::trace::TraceParent;
use pg_rows::encoding::{Compression, Format};

/// The formats that this build writes.
fn known_formats() -> Vec<&'static str> {
    Format::ALL.iter().filter(|format| format.spec().is_built).map(|format| format.as_str()).collect()
}

fn known_compressions() -> Vec<&'static str> {
    Compression::ALL.iter().map(|compression| compression.as_str()).collect()
}

/// A front is used for so long: a job whose time somebody set back by hand waits no longer.
const FRONT_EVERY: Duration = Duration::from_secs(5);

/// Which pending jobs `r` a process may take once their time has come. The process knows the formats `$1`, the compressions `$2` and the
/// datasets `$3`, and its destination is `$4`.
macro_rules! claimable {
    () => {
        "r.status = 'pending' and r.format = any($1) and r.compression = any($2) and r.dataset = any($3)
         and (r.destination_id is null or r.destination_id = $4
           or not exists (select from cdc_export.destinations d
                          where d.id = r.destination_id and d.seen_at between clock_timestamp() - interval '1 minute' and clock_timestamp()))
         -- What the next condition says of lanes in which a job runs or waits for its retry, but in one pass: a long lane behind
         -- such a job would else be probed job by job. And a lane waits until its last file has its name: whoever reads it would
         -- else see what comes after that one first.
         and (r.consumer_id is null or (r.consumer_id, r.dataset) not in (
           select b.consumer_id, b.dataset from exports b
           where b.status = 'processing' and b.consumer_id is not null
           union all
           select b.consumer_id, b.dataset from exports b
           where b.status = 'pending' and b.run_at > statement_timestamp() and b.consumer_id is not null
           union all
           select b.consumer_id, b.dataset from exports b
           where b.status = 'completed' and b.published_at is null and b.consumer_id is not null))
         and not exists (
           select from exports earlier
           where earlier.consumer_id = r.consumer_id and earlier.dataset = r.dataset
             and earlier.lane_sequence < r.lane_sequence and earlier.status in ('pending', 'processing'))"
    };
}

/// How much shorter or longer the pause before a retry may be.
const RETRY_JITTER: f64 = 0.2;

/// The pause after so many attempts, counted from 1: two seconds, three times as many after each further one, ten minutes at most.
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
struct ClaimedRow {
    #[sqlx(flatten)]
    job: JobRow,
    database: String,
}

/// Takes the oldest job that is ready, of those that are not older than the front of the queue.
async fn claim(
    conn: &mut PgConnection,
    claimant: &Claimant<'_>,
    lease: Duration,
    front: DateTime<Utc>,
) -> Result<Option<Lease>, Error> {
    let token = LeaseToken::random();
    let claimed: Result<Option<ClaimedRow>, sqlx::Error> = sqlx::query_as(concat!(
        "-- store.queue.claim
         update exports e
         set status = 'processing', attempt = e.attempt + 1, progress = 0, rows_exported = 0, bytes_written = 0,
             lease_token = $5, lease_owner = $6, lease_expires_at = clock_timestamp() + make_interval(secs => $7),
             destination_id = $4, purge_hold = pg_current_snapshot(), continuity = null,
             -- A lane's times go on from those before, also where the clock was set back: retention counts from the newest.
             started_at = coalesce(e.started_at, greatest(clock_timestamp(), e.created_at, (
               select l.finished_at from exports l
               where l.consumer_id = e.consumer_id and l.dataset = e.dataset and l.lane_sequence < e.lane_sequence and l.status = 'completed'
               order by l.lane_sequence desc limit 1)))
         where e.id = (
           select r.id from exports r where r.run_at between $8 and statement_timestamp() and ",
        claimable!(),
        "
           order by r.run_at, r.created_at
           limit 1
           for update skip locked)
         returning cdc_export.database_id() as database, ",
        job_columns!()
    ))
    .bind(known_formats())
    .bind(known_compressions())
    .bind(claimant.datasets)
    .bind(claimant.destination)
    .bind(token.as_uuid())
    .bind(claimant.owner)
    .bind(lease.as_secs_f64())
    .bind(front)
    .fetch_optional(conn)
    .await;
    match claimed {
        Ok(None) => Ok(None),
        Ok(Some(ClaimedRow { job, database })) => Ok(Some(Lease::new(job.try_into()?, database.parse()?, token))),
        // Another job of the lane began to run in the same moment: nothing to claim here.
        Err(error) if SqlFailure::of(&error) == SqlFailure::Duplicate => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A time before which there is no job to claim. While some export holds an old snapshot, the index keeps an entry for each job
/// that has left the queue since, and a claim that began at the index's end would read them all, each time.
async fn front(conn: &mut PgConnection, claimant: &Claimant<'_>) -> Result<DateTime<Utc>, sqlx::Error> {
    // A job that is being submitted isn't seen yet, and may be as old as the timeout of a client's call.
    sqlx::query_scalar(concat!(
        "-- store.queue.front
         select least((select r.run_at from exports r where ",
        claimable!(),
        " order by r.run_at limit 1), statement_timestamp()) - interval '1 minute'"
    ))
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
    /// Whether nobody writes it any more, or will miss it. Of a job that the database doesn't know nothing is known: it may be that of a
    /// clone, which has the same identity. A publisher's file has its final name in a moment, or is written again.
    pub is_removable: bool,
}

/// How a worker leaves a job that it didn't complete.
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
    /// A job belongs to the destination of the process that accepted it, which will serve its file, while any process with that
    /// destination lives. A job of a format or dataset that this process doesn't know is left to a process that does.
    pub async fn claim(&self, claimant: &Claimant<'_>, lease: Duration) -> Result<Option<Lease>, Error> {
        self.with(async |conn| {
            let known = *self.front.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(front) = known.filter(|front| front.asked.elapsed() < FRONT_EVERY)
                && let Some(lease) = claim(conn, claimant, lease, front.at).await?
            {
                return Ok(Some(lease));
            }
            // The front may have gone back: a job behind another one of its lane is ready only now.
            let front = Front { at: front(conn, claimant).await?, asked: Instant::now() };
            *self.front.lock().unwrap_or_else(PoisonError::into_inner) = Some(front);
            claim(conn, claimant, lease, front.at).await
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

    /// Leaves a job: it is pending, failed or cancelled then. `None`: it wasn't this lease's to leave. `cause` is the attempt's error with
    /// its causes, for the log.
    ///
    /// Waits for a commit of this attempt that is still under way, since that holds the row; so after `Some` such a commit can't
    /// happen any more.
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
        let statement = sqlx::query_as::<_, TransitionRow>(concat!(
            "-- store.queue.settle
             update exports e
             set status = held.next, progress = 0,
                 attempt = e.attempt - case held.next when 'pending' then $4 else 0 end,
                 lease_token = null, lease_owner = null, lease_expires_at = null,
                 finished_at = case when held.next <> 'pending' then greatest(clock_timestamp(), e.started_at) end,
                 run_at = clock_timestamp() + make_interval(secs => $8), purge_hold = null, continuity = $7,
                 error_code = case when held.next = 'cancelled' then null else coalesce($5, e.error_code) end,
                 error_detail = case when held.next = 'cancelled' then null else coalesce($6, e.error_detail) end
             from (
               select id, case when cancel_requested_at is not null then 'cancelled'
                               when $3 or attempt - $4 >= max_attempts then 'failed' else 'pending' end as next
               from exports where id = $1 and lease_token = $2 and status = 'processing'
               for update) held
             where e.id = held.id
             returning 'processing' as was, ",
            job_columns!()
        ))
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
    /// A lease is shortened to four of this process's, so that a worker with a longer one of its own has time to renew it.
    pub async fn repair_future_timestamps(&self, lease: Duration) -> Result<(), Error> {
        // No pause: a job that was never attempted. The rows of both are looked for from the far end of an index.
        let statement = sqlx::query(
            "-- store.queue.repair_future_timestamps
             with ready as (
               select id from exports
               where status = 'pending' and run_at > clock_timestamp()
                 and run_at > clock_timestamp()
                   + make_interval(secs => coalesce(($2::float8[])[least(attempt, cardinality($2::float8[]))], 0))
               for update skip locked),
             leased as (
               select id from exports
               where status = 'processing' and lease_expires_at > clock_timestamp() + 4 * make_interval(secs => $1)
               for update skip locked),
             made_ready as (
               update exports e set run_at = clock_timestamp() from ready where e.id = ready.id)
             update exports e set lease_expires_at = clock_timestamp() + 4 * make_interval(secs => $1)
             from leased where e.id = leased.id",
        )
        .bind(lease.as_secs_f64())
        .bind(longest_retry_pauses());
        self.execute(statement).await.map(drop)
    }

    /// Takes over the jobs of vanished workers: they are pending again, or failed once their attempts are spent.
    ///
    /// Passes over a locked row, whose worker may just be committing it.
    pub async fn reap(&self) -> Result<Vec<Transition>, Error> {
        let statement = sqlx::query_as::<_, TransitionRow>(concat!(
            "-- store.queue.reap
             update exports e
             set status = lost.next, progress = 0, lease_token = null, lease_owner = null, lease_expires_at = null,
                 run_at = clock_timestamp(), purge_hold = null,
                 finished_at = case when lost.next <> 'pending' then greatest(clock_timestamp(), e.started_at) end,
                 error_code = case lost.next when 'failed' then $1 end,
                 error_detail = case lost.next when 'failed' then 'its workers vanished, each of ' || e.attempt || ' attempts' end
             from (
               select id, case when cancel_requested_at is not null then 'cancelled'
                               when attempt >= max_attempts then 'failed' else 'pending' end as next
               from exports where status = 'processing' and lease_expires_at < clock_timestamp()
               for update skip locked) lost
             where e.id = lost.id
             returning 'processing' as was, ",
            job_columns!()
        ));
        self.transitions(statement.bind(FailureCode::AttemptsExhausted.as_str())).await
    }

    /// Which of these hidden files are left over by attempts that ended without completing their jobs.
    ///
    /// A folder may be shared with the service of another database, also of a copy of this one: that service's files are not among those
    /// returned. Files that name this database are returned also where it was restored to before it knew the job.
    pub async fn ended_attempts(&self, hidden: Vec<HiddenFile>) -> Result<Vec<EndedAttempt>, Error> {
        let (ids, tokens): (Vec<Uuid>, Vec<Uuid>) =
            hidden.iter().map(|file| (file.job.as_uuid(), file.token.as_uuid())).unzip();
        let databases: Vec<_> = hidden.iter().map(|file| file.database.as_str()).collect();
        let markers: Vec<_> = hidden.iter().map(HiddenFile::is_marker).collect();
        let statement = sqlx::query_as(
            "-- store.queue.ended_attempts
             select a.place, e.id is not null and (not a.is_marker or e.status <> 'completed' or e.published_at is not null)
             from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bool[]) with ordinality
               as a (id, token, database, is_marker, place)
             cross join (select cdc_export.database_id() as database) own
             left join exports e on e.id = a.id
             where a.database = own.database
               and e.lease_token is distinct from a.token
               and (e.staged_name is null or e.staged_name not like '%' || a.token || '%')",
        )
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
