//! Sessions of ours as the server sees them: whether the other end of a connection still works for us.
//!
//! A connection whose packets are lost on the way is silent, and so is one whose statement takes hours to its first
//! row. Only the server knows which it is, and tells over another connection: while we wait for it, it doesn't wait for
//! us. The socket's own keepalive can't be turned on (sqlx doesn't lend it), and wouldn't see a proxy that acknowledges
//! what it throws away.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::timeout;

use crate::quote::literal;
use crate::{Error, Source};
use pg_session::failure::{SqlFailure, chain, with_timeout};
use pg_session::pool::has_no_transaction;
use pg_session::{self, session_name};

/// The pause between two questions about a silent session.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The shortest time after which a call counts as lost that brings nothing although the server has answered it, or
/// isn't there any more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the time after which a call is lost if the server has answered it or has ended the session.
fn answer_timeout(lease: Duration) -> Duration {
    lease.max(failpoint::time("source.answer", ANSWER_TIMEOUT))
}

/// Returns the longest time that a row may take while the server has more to send. A row may have hundreds of
/// megabytes.
fn row_timeout(lease: Duration) -> Duration {
    (lease * 2).max(Duration::from_secs(60))
}

/// A session of ours. A process id alone may come again, and another role does not see the start of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) pid: i32,
    pub(crate) name: String,
}

/// The activity of a session that we wait for, as the server reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// It works, or waits for something that isn't us.
    Works,
    /// It waits until we take what it sends.
    Sends,
    /// It has sent everything, and waits for what we say next.
    Listens,
    Gone,
}

impl Activity {
    /// Returns true if a connection that was quiet for so long is lost.
    fn is_lost_after(self, quiet: Duration, lease: Duration) -> bool {
        match self {
            Activity::Works => false,
            Activity::Sends => quiet >= row_timeout(lease),
            Activity::Listens | Activity::Gone => quiet >= answer_timeout(lease),
        }
    }
}

/// Lets the next statement see which sessions there are now: in a transaction the first that asks decides for those
/// after it.
async fn forget_who_was_there(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("-- source.session.forget\n select pg_stat_clear_snapshot()").execute(conn).await.map(drop)
}

impl Session {
    pub(crate) async fn connect(
        options: &PgConnectOptions,
        name: String,
    ) -> Result<(PgConnection, Session), sqlx::Error> {
        let mut conn = pg_session::connect(&options.clone().application_name(&name)).await?;
        let pid = sqlx::query_scalar("-- source.session.pid\n select pg_backend_pid()").fetch_one(&mut conn).await?;
        Ok((conn, Session { pid, name }))
    }

    /// Asks about the session over another connection. A role that is not the login's own does not see for what a
    /// session waits: the session then counts as one that works.
    async fn activity(&self, conn: &mut PgConnection) -> Result<Activity, sqlx::Error> {
        forget_who_was_there(conn).await?;
        let waits: Option<(Option<String>,)> = sqlx::query_as(
            "-- source.session.activity
             select case wait_event_type when 'Client' then wait_event end
             from pg_stat_activity where pid = $1 and application_name = $2",
        )
        .bind(self.pid)
        .bind(&self.name)
        .fetch_optional(conn)
        .await?;
        Ok(match waits {
            None => Activity::Gone,
            Some((None,)) => Activity::Works,
            Some((Some(event),)) if event == "ClientWrite" => Activity::Sends,
            Some((Some(_),)) => Activity::Listens,
        })
    }

    /// Ends the session, which would hold its lock and its snapshot until the server notices that nobody is there.
    /// If that fails, the server ends it later. A transaction of `conn` is rolled back.
    pub(crate) async fn end(&self, conn: &mut PgConnection) {
        // A login may end its own sessions. Another role that is set for it may not. Statements that are sent together
        // are one transaction.
        let end = format!(
            "-- source.session.end
             set local role none;
             select pg_terminate_backend(pid) from pg_stat_activity where pid = {} and application_name = {}",
            self.pid,
            literal(&self.name)
        );
        let end = async {
            if !has_no_transaction(conn).await {
                sqlx::raw_sql("-- source.session.rollback\n rollback").execute(&mut *conn).await?;
            }
            sqlx::raw_sql(AssertSqlSafe(end)).execute(conn).await
        };
        let ended = timeout(END_TIMEOUT, end).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        match ended {
            Ok(_) => tracing::warn!(event = "session_ended", pid = self.pid, session = self.name),
            Err(error) => {
                let remedy = match SqlFailure::of(&error) {
                    SqlFailure::Denied => "the service's role needs pg_signal_backend, or all processes one login",
                    _ => "the server ends it after tcp_user_timeout",
                };
                tracing::warn!(event = "session_not_ended", pid = self.pid, remedy, error = chain(&error));
            }
        }
    }

    /// Awaits a call on this session's connection for as long as the server works on it, which `other`, a connection
    /// that is idle meanwhile, asks from time to time.
    ///
    /// # Errors
    /// If the call fails, or its answer is lost, or `other` doesn't answer within a lease.
    pub(crate) async fn watched<T>(
        &self,
        other: &mut PgConnection,
        lease: Duration,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let begun = Instant::now();
        let watch = async {
            loop {
                tokio::time::sleep(WATCH_INTERVAL).await;
                if begun.elapsed() >= answer_timeout(lease)
                    && let Err(lost) = self.require(other, begun.elapsed(), lease, || true).await
                {
                    return lost;
                }
            }
        };
        tokio::select! { biased; done = call => done, lost = watch => Err(lost) }
    }

    /// Asks whether a connection that was quiet for so long is lost, if it still is after the question.
    async fn require(
        &self,
        conn: &mut PgConnection,
        quiet: Duration,
        lease: Duration,
        is_quiet: impl Fn() -> bool,
    ) -> Result<(), Error> {
        let question = timeout(lease, self.activity(conn)).await;
        let activity = question.map_err(|_| silent())?.map_err(Error::Unavailable)?;
        if !activity.is_lost_after(quiet, lease) || !is_quiet() {
            return Ok(());
        }
        tracing::warn!(event = "connection_silent", pid = self.pid, ?activity, seconds = quiet.as_secs());
        self.end(conn).await;
        Err(silent())
    }
}

impl Source {
    /// Ends the sessions of an attempt that another process has taken over. They hold its snapshot and its tables'
    /// locks. `leader` is the name of its leader's session.
    pub async fn end_sessions(&self, leader: &str) -> Result<(), Error> {
        let sessions = sqlx::query_as(
            "-- source.session.of_attempt
             select pid, application_name from pg_stat_activity where application_name in ($1, $2)",
        );
        let sessions = sessions.bind(leader).bind(session_name::of_reader(leader));
        let ended = self.with("pg_stat_activity", async |conn| {
            for (pid, name) in sessions.fetch_all(&mut *conn).await? {
                Session { pid, name }.end(conn).await;
            }
            Ok(())
        });
        ended.await
    }
}

fn silent() -> Error {
    Error::Unavailable(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
}

/// A reader of a snapshot, as the leader sees it. The reader says when it waits for the server, and counts what it
/// hears.
#[derive(Debug)]
pub(crate) struct Reader {
    session: Session,
    awaits: AtomicBool,
    heard: AtomicU64,
}

impl Reader {
    /// Returns the name of its session, which all readers of the snapshot have.
    pub(crate) fn name(&self) -> &str {
        &self.session.name
    }

    /// From now on the reader waits for the server.
    pub(crate) fn awaits_server(&self) {
        self.heard();
        self.awaits.store(true, Ordering::Relaxed);
    }

    /// A row came. (One task writes this: no need for an atomic sum.)
    pub(crate) fn heard(&self) {
        self.heard.store(self.heard.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// From now on the reader waits for those who take its rows, or for nobody.
    pub(crate) fn rests(&self) {
        self.awaits.store(false, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Readers(Arc<Mutex<Vec<Arc<Reader>>>>);

impl Readers {
    pub(crate) fn join(&self, session: Session) -> Arc<Reader> {
        let (awaits, heard) = Default::default();
        let reader = Arc::new(Reader { session, awaits, heard });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&reader));
        reader
    }

    /// Ends their sessions over the connection of the leader, whose transaction is rolled back.
    pub(crate) async fn end(&self, leader: &mut PgConnection) {
        for reader in self.all() {
            reader.session.end(leader).await;
        }
    }

    fn all(&self) -> Vec<Arc<Reader>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A session that waits for a lock which the export prevents, and the relation.
type Waiter = (i32, Oid);

/// The connection that holds the snapshot, while its readers read.
#[derive(Debug)]
pub struct Leader<'s> {
    pub(super) conn: &'s mut PgConnection,
    pub(super) session: &'s Session,
    pub(super) readers: &'s Readers,
}

impl Leader<'_> {
    /// Gives a sign over the leader's connection once in each `every`, for ever: its transaction would else end for
    /// want of one. Asks about readers that hear nothing. Returns when the leader or a reader is lost, which nothing
    /// else would notice: the leader is idle, and a reader waits. Returns as well when the export has kept a session
    /// waiting for the time `give_way`.
    pub async fn keep_alive(mut self, every: Duration, lease: Duration, give_way: Option<Duration>) -> Error {
        let mut last_heard: HashMap<i32, (u64, Instant)> = HashMap::new();
        let mut waiting: HashMap<Waiter, Instant> = HashMap::new();
        loop {
            tokio::time::sleep(every).await;
            let waiters = match with_timeout(lease * 2 / 3, self.waiters(), Error::Unavailable).await {
                Ok(waiters) => waiters,
                Err(lost) => return lost,
            };
            let now = Instant::now();
            let since = |waiter| (waiter, waiting.get(&waiter).copied().unwrap_or(now));
            waiting = waiters.into_iter().map(since).collect();
            let first = waiting.iter().min_by_key(|(_, since)| **since);
            if let Some((waiter, since)) = first
                && give_way.is_some_and(|limit| since.elapsed() >= limit)
            {
                return self.gave_way(*waiter, since.elapsed()).await;
            }
            for reader in self.readers.all() {
                let heard = reader.heard.load(Ordering::Relaxed);
                let is_quiet =
                    || reader.heard.load(Ordering::Relaxed) == heard && reader.awaits.load(Ordering::Relaxed);
                let last = last_heard.entry(reader.session.pid).or_insert((heard, Instant::now()));
                if last.0 != heard || !is_quiet() {
                    *last = (heard, Instant::now());
                }
                let quiet = last.1.elapsed();
                if quiet >= answer_timeout(lease)
                    && let Err(lost) = reader.session.require(self.conn, quiet, lease, is_quiet).await
                {
                    return lost;
                }
            }
        }
    }

    async fn waiters(&mut self) -> Result<Vec<Waiter>, Error> {
        let readers = self.readers.all();
        let own: Vec<_> = readers.iter().map(|reader| reader.session.pid).chain([self.session.pid]).collect();
        let found = sqlx::query_as(include_str!("session/waiters.sql")).bind(own).fetch_all(&mut *self.conn);
        found.await.map_err(Error::Unavailable)
    }

    /// Returns the error of an export that ends because a session has waited for it.
    async fn gave_way(&mut self, (pid, relation): Waiter, waited: Duration) -> Error {
        let described = async {
            forget_who_was_there(self.conn).await?;
            let described = sqlx::query_as(
                "-- source.session.describe
                 select coalesce((
                     select format('session %s of role %s (application %s)', a.pid, a.usename,
                       coalesce(nullif(a.application_name, ''), 'without a name'))
                     from pg_stat_activity a where a.pid = $1), format('session %s', $1)),
                   coalesce((
                     select format('%s.%s', n.nspname, c.relname)
                     from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $2), 'a table')",
            );
            described.bind(pid).bind(relation).fetch_one(&mut *self.conn).await
        };
        match described.await {
            Ok((session, relation)) => Error::GaveWay { session, relation, seconds: waited.as_secs() },
            Err(cause) => Error::Unavailable(cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_works_is_waited_for_as_long_as_it_takes() {
        let (lease, day) = (Duration::from_secs(30), Duration::from_secs(86_400));
        assert!(!Activity::Works.is_lost_after(day, lease));
        for (activity, limit) in [(Activity::Listens, 30), (Activity::Gone, 30), (Activity::Sends, 60)] {
            let limit = Duration::from_secs(limit);
            assert!(activity.is_lost_after(limit, lease), "{activity:?}");
            assert!(!activity.is_lost_after(limit - Duration::from_secs(1), lease), "{activity:?}");
        }
    }
}
