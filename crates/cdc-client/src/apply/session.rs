//! A session of the target, seen over another connection: the sessions that hold a lock for which it waits, and if it
//! still works for us.
//!
//! A connection whose packets are lost on the way is silent, and so is one whose statement takes hours. Only the server
//! knows which it is. The socket's own keepalive can't be turned on (sqlx doesn't lend it), and wouldn't notice a proxy
//! that acknowledges what it throws away.

use std::io;
use std::time::Duration;

use sqlx::{Connection, PgConnection, PgTransaction};
use tokio::time::{Instant, sleep};

use crate::apply::connections::TargetConnections;
use crate::apply::{BEGIN, During, Error, TransactionFailure};
use crate::observer::quiet_wait;

/// The pause between two looks at a session. The first look comes after one pause.
const PAUSE: Duration = Duration::from_secs(1);

/// The time for which the target may neither answer nor work for a session.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// The process of a transaction's session on the server. With a pooler, the next transaction has another one.
#[derive(Clone, Copy)]
struct TargetSession(i32);

/// A session as the server reports it.
#[derive(sqlx_macros::FromRow)]
struct Sight {
    /// False if the session waits for our next statement. `None` if there is no such session.
    works: Option<bool>,
    /// The sessions that hold a lock for which it waits.
    holders: Option<String>,
}

/// A condition that may last.
#[derive(Default)]
struct Lasting {
    since: Option<Instant>,
    is_told: bool,
}

impl Lasting {
    /// Records if the condition holds. Returns true once: when the user is to be told of it.
    fn is_news(&mut self, holds: bool) -> bool {
        if !holds {
            *self = Lasting::default();
            return false;
        }
        self.since.get_or_insert_with(Instant::now);
        self.lasted() >= quiet_wait() && !std::mem::replace(&mut self.is_told, true)
    }

    fn lasted(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl TargetConnections {
    /// Does work in a transaction, which the work ends. Keeps the connection for the next target, unless the work
    /// fails.
    ///
    /// # Errors
    /// Also if the target falls silent, as [`TargetSession::watched`] does.
    pub(super) async fn transaction<T>(
        &self,
        work: impl AsyncFnOnce(PgTransaction<'_>) -> Result<T, TransactionFailure>,
    ) -> Result<T, TransactionFailure> {
        let mut conn = self.take().await?;
        let begin = async {
            let mut tx = conn.begin().await?;
            let session = TargetSession::of(&mut tx).await?;
            Ok((tx, session))
        };
        let (tx, session) = self.answered(begin).await.during(BEGIN)?;
        let done = session.watched(self, work(tx)).await?;
        self.keep(conn);
        Ok(done)
    }
}

impl TargetSession {
    async fn of(conn: &mut PgConnection) -> Result<TargetSession, sqlx::Error> {
        sqlx::query_scalar("-- apply.session.of\n select pg_backend_pid()").fetch_one(conn).await.map(TargetSession)
    }

    async fn sight(self, conn: &mut PgConnection) -> Result<Sight, sqlx::Error> {
        let sight = sqlx::query_as(
            "-- apply.session.sight
             select (select coalesce(state not like 'idle%', true) from pg_stat_activity where pid = $1) as works,
               (select string_agg(case when blocking.pid = 0 then 'a prepared transaction (pg_prepared_xacts)'
                  else format('process %s of role %s (%s)', blocking.pid, a.usename, a.application_name) end, ', ')
                from unnest(pg_blocking_pids($1)) as blocking (pid)
                left join pg_stat_activity a on a.pid = blocking.pid) as holders",
        );
        sight.bind(self.0).fetch_one(conn).await
    }

    /// Ends the session, which waits for our next statement and would hold its locks meanwhile.
    async fn end(self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        let end = sqlx::query(
            "-- apply.session.end
             select pg_terminate_backend(pid) from pg_stat_activity where pid = $1 and state like 'idle%'",
        );
        end.bind(self.0).execute(conn).await.map(drop)
    }

    /// Does the work of the session's transaction. If a lock is not acquired in time, the error names the sessions that
    /// held it.
    ///
    /// # Errors
    /// Also if the target neither answers nor works for the session: [`Error::Unavailable`].
    async fn watched<T>(
        self,
        connections: &TargetConnections,
        work: impl Future<Output = Result<T, TransactionFailure>>,
    ) -> Result<T, TransactionFailure> {
        let mut last = None;
        let done = tokio::select! {
            biased;
            done = work => done,
            silent = self.watch(connections, &mut last) => Err(silent.into()),
        };
        done.map_err(|failure| match (failure, last) {
            (TransactionFailure { error: Error::Locked { action, .. }, member }, Some(holder)) => {
                TransactionFailure { error: Error::Locked { action, holder }, member }
            }
            (failure, _) => failure,
        })
    }

    /// Keeps the holders of the lock for which the session waits in `last`, because they are unknown once Postgres
    /// gives up. Returns when the target has been silent for too long.
    async fn watch(self, connections: &TargetConnections, last: &mut Option<String>) -> Error {
        let (mut locked, mut silent, mut was_seen) = (Lasting::default(), Lasting::default(), false);
        let limit = failpoint::time("apply.silence", SILENCE_TIMEOUT);
        loop {
            sleep(PAUSE).await;
            let sight = connections.looking(async |conn| self.sight(conn).await).await;
            was_seen |= matches!(sight, Ok(Sight { works: Some(_), .. }));
            let is_silent = match &sight {
                // A pooler may ask another server, which never has the session.
                Ok(sight) => !sight.works.unwrap_or(!was_seen),
                // A refusal is an answer. Then the holders stay unknown.
                Err(error) => error.as_database_error().is_none(),
            };
            let holders = sight.ok().and_then(|sight| sight.holders);
            if locked.is_news(holders.is_some()) {
                let holders = holders.as_deref().unwrap_or_default();
                connections.observer.notice(&format!("waiting for a lock of the target, which {holders} holds"));
            }
            *last = holders.or(last.take());
            if silent.is_news(is_silent) {
                connections.observer.notice("the target database has fallen silent: waiting for its answer");
            }
            if silent.lasted() >= limit {
                let _ = connections.looking(async |conn| self.end(conn).await).await;
                let why = format!("no answer for {} seconds: the connection is given up", limit.as_secs());
                return Error::Unavailable(io::Error::new(io::ErrorKind::TimedOut, why).into());
            }
        }
    }
}
