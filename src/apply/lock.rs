//! Names the sessions that hold a lock for which a statement waits.

use std::convert::Infallible;
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::time::sleep;

use crate::apply::statement::run;
use crate::apply::{During, Error};
use crate::connection;

/// The pause between two looks at the locks. The first look comes after one pause.
const PAUSE: Duration = Duration::from_secs(1);

/// Limits the time for which a statement waits for a lock, unless the role has a limit of its own.
pub(super) async fn limit_waits(conn: &mut PgConnection) -> Result<(), Error> {
    let set = "select set_config('lock_timeout', '30s', false) where current_setting('lock_timeout') = '0'";
    run(conn, "lock.limit", set).await.map(drop).during("the connection")
}

/// Returns the process of the session on the server. With a pooler it is valid until the end of the transaction.
pub(super) async fn process(conn: &mut PgConnection) -> Result<i32, Error> {
    sqlx::query_scalar("-- apply.lock.process\n select pg_backend_pid()").fetch_one(conn).await.during("to begin")
}

/// Does the work of a process. If a lock is not acquired in time, the error names the sessions that held it.
pub(super) async fn name_holders<T>(
    options: &PgConnectOptions,
    process: i32,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut last = None;
    let done = tokio::select! {
        biased;
        done = work => done,
        never = watch(options, process, &mut last) => match never {},
    };
    done.map_err(|error| match (error, last) {
        (Error::Locked { action, .. }, Some(holder)) => Error::Locked { action, holder },
        (error, _) => error,
    })
}

/// Keeps the holders of the lock for which the process waits in `last`. Uses a second connection, because the holders
/// are unknown once Postgres gives up.
async fn watch(options: &PgConnectOptions, process: i32, last: &mut Option<String>) -> Infallible {
    sleep(PAUSE).await;
    if let Ok(mut conn) = connection::connect_target(options).await {
        while let Ok(found) = holders(&mut conn, process).await {
            *last = found.or(last.take());
            sleep(PAUSE).await;
        }
    }
    // Without a second connection the holders stay unknown.
    std::future::pending().await
}

/// Returns the sessions that hold a lock for which the process waits. Returns `None` if it waits for none.
async fn holders(conn: &mut PgConnection, process: i32) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        "-- apply.lock.holders
         select string_agg(format('process %s of role %s (%s)', a.pid, a.usename, a.application_name), ', ')
         from pg_stat_activity waiting
         cross join lateral unnest(pg_blocking_pids(waiting.pid)) as blocking (pid)
         join pg_stat_activity a on a.pid = blocking.pid
         where waiting.pid = $1 and waiting.wait_event_type = 'Lock'",
    )
    .bind(process)
    .fetch_one(conn)
    .await
}
