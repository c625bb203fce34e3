//! Sessions of ours as the server sees them: whether the other end of a connection still works for us.
//!
//! A connection whose packets are lost on the way is silent, and so is one whose statement takes hours to its first
//! row. Only the server knows which it is, and tells over another connection: while we wait for it, it doesn't wait for
//! us. The socket's own keepalive can't be turned on (sqlx doesn't lend it), and wouldn't see a proxy that acknowledges
//! what it throws away.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use crate::connection::failure::with_timeout;
use crate::failpoint;
use crate::job::SessionId;
use crate::source::Error;
use crate::telemetry::chain;

/// The pause between two questions about a silent session.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The longest wait for the end of a session.
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

/// A session of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session(SessionId);

/// The activity of a session that we wait for, as the server reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// It works, or waits for something that isn't us.
    Works,
    /// It waits until we take what it sends.
    Sends,
    /// It has sent everything, and waits for what we say next.
    Listens,
    /// It has ended.
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
async fn forget_who_was_there(asked: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("-- source.session.forget\n select pg_stat_clear_snapshot()").execute(asked).await.map(drop)
}

impl Session {
    pub(crate) fn id(&self) -> SessionId {
        self.0
    }

    /// The session of a connection.
    pub(crate) async fn read(conn: &mut PgConnection) -> Result<Session, sqlx::Error> {
        let (pid, started) = sqlx::query_as(
            "-- source.session.of
             select pid, backend_start from pg_stat_activity where pid = pg_backend_pid()",
        )
        .fetch_one(conn)
        .await?;
        Ok(Session(SessionId { pid, started }))
    }

    /// Asks about the session over another connection. A role sees its own sessions, whatever else it may not.
    async fn activity(&self, asked: &mut PgConnection) -> Result<Activity, sqlx::Error> {
        forget_who_was_there(asked).await?;
        let waits: Option<(Option<String>,)> = sqlx::query_as(
            "-- source.session.activity
             select case wait_event_type when 'Client' then wait_event end
             from pg_stat_activity where pid = $1 and backend_start = $2",
        )
        .bind(self.0.pid)
        .bind(self.0.started)
        .fetch_optional(asked)
        .await?;
        Ok(match waits {
            None => Activity::Gone,
            Some((None,)) => Activity::Works,
            Some((Some(event),)) if event == "ClientWrite" => Activity::Sends,
            Some((Some(_),)) => Activity::Listens,
        })
    }

    /// Ends the session, which would hold its lock and its snapshot until the server notices that nobody is there.
    /// Where that fails, it is left to the server.
    pub(crate) async fn end(&self, asked: &mut PgConnection) {
        let end = async {
            forget_who_was_there(asked).await?;
            let end = sqlx::query(
                "-- source.session.end
                 select pg_terminate_backend(pid) from pg_stat_activity where pid = $1 and backend_start = $2",
            );
            end.bind(self.0.pid).bind(self.0.started).execute(asked).await
        };
        if let Ok(Err(error)) = timeout(END_TIMEOUT, end).await {
            tracing::warn!(event = "session_not_ended", pid = self.0.pid, error = chain(&error));
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
        asked: &mut PgConnection,
        quiet: Duration,
        lease: Duration,
        is_quiet: impl Fn() -> bool,
    ) -> Result<(), Error> {
        let question = timeout(lease, self.activity(asked)).await;
        let activity = question.map_err(|_| silent())?.map_err(Error::Unavailable)?;
        if !activity.is_lost_after(quiet, lease) || !is_quiet() {
            return Ok(());
        }
        tracing::warn!(event = "connection_silent", pid = self.0.pid, ?activity, seconds = quiet.as_secs());
        self.end(asked).await;
        Err(silent())
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

/// The readers of a snapshot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readers(Arc<Mutex<Vec<Arc<Reader>>>>);

impl Readers {
    /// Adds a reader.
    pub(crate) fn join(&self, session: Session) -> Arc<Reader> {
        let (awaits, heard) = Default::default();
        let reader = Arc::new(Reader { session, awaits, heard });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&reader));
        reader
    }

    fn all(&self) -> Vec<Arc<Reader>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The connection that holds the snapshot, while its readers read.
#[derive(Debug)]
pub struct Leader<'s> {
    pub(super) conn: &'s mut PgConnection,
    pub(super) readers: &'s Readers,
}

impl Leader<'_> {
    /// Gives a sign over the leader's connection once in each `every`, for ever: its transaction would else end for
    /// want of one. Asks about readers that hear nothing. Returns when the leader or a reader is lost, which nothing
    /// else would notice: the leader is idle, and a reader waits.
    pub async fn keep_alive(self, every: Duration, lease: Duration) -> Error {
        let mut last_heard: Vec<(u64, Instant)> = Vec::new();
        loop {
            tokio::time::sleep(every).await;
            let ping = async { self.conn.ping().await.map_err(Error::Unavailable) };
            if let Err(lost) = with_timeout(lease * 2 / 3, ping, Error::Unavailable).await {
                return lost;
            }
            for (at, reader) in self.readers.all().iter().enumerate() {
                let heard = reader.heard.load(Ordering::Relaxed);
                let is_quiet =
                    || reader.heard.load(Ordering::Relaxed) == heard && reader.awaits.load(Ordering::Relaxed);
                if at == last_heard.len() {
                    last_heard.push((heard, Instant::now()));
                }
                if last_heard[at].0 != heard || !is_quiet() {
                    last_heard[at] = (heard, Instant::now());
                }
                let quiet = last_heard[at].1.elapsed();
                if quiet >= answer_timeout(lease)
                    && let Err(lost) = reader.session.require(self.conn, quiet, lease, is_quiet).await
                {
                    return lost;
                }
            }
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
