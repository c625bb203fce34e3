//! An application beside the service reads rows by their keys, and locks tables like ALTER TABLE. The service must not
//! make any statement of it fail, or wait for longer than [`PATIENCE`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use sqlx::{Executor, PgConnection};

use crate::cluster::SERVICE;
use crate::random::Random;
use crate::trial::World;

/// Longest wait: `GIVE_WAY_SECONDS`, the interval at which an export checks for waiters, and the takeover of a job.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pause between two checks of whether the service blocks a statement.
const LOOK: Duration = Duration::from_millis(200);

const STATEMENTS: [&str; 4] = [
    "lock table users in access exclusive mode",
    "lock table shapes in access exclusive mode",
    "lock table parts in access exclusive mode",
    "select from users where id = 1",
];

/// Postgres's error codes for a deadlock and a full lock table. Lost connections don't count: the nemesis cuts them.
const HARMS: [&str; 2] = ["40P01", "53200"];

/// Sends statements until the writers must stop. Returns the number of statements that were answered.
pub(crate) async fn work(world: Arc<World>) -> usize {
    let (mut random, mut answered) = (Random::new(world.seed, 970), 0);
    while world.writing.load(Ordering::SeqCst) {
        tokio::time::sleep(random.millis(300, 3_000)).await;
        let statement = STATEMENTS[random.below(STATEMENTS.len() as u64) as usize];
        match send(&world, statement).await {
            Ok(()) => answered += 1,
            Err(error) => world.report.announce(&format!("bystander: {error:#}")),
        }
    }
    answered
}

async fn send(world: &World, statement: &'static str) -> Result<()> {
    let (mut conn, mut other) = (world.cluster.connect().await?, world.cluster.connect().await?);
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut conn).await?;
    let sent = async {
        conn.execute("begin").await?;
        conn.execute(statement).await?;
        conn.execute("rollback").await
    };
    let answered = tokio::select! {
        answered = sent => answered,
        blocked = waits_for_service(&mut other, pid) => {
            world.report.red("13", format!("`{statement}` waited {:?} for the service", blocked?));
            return Ok(());
        }
    };
    if let Err(sqlx::Error::Database(error)) = &answered
        && error.code().is_some_and(|code| HARMS.contains(&&*code))
    {
        world.report.red("13", format!("`{statement}` failed: {error}"));
    }
    Ok(answered.map(drop)?)
}

/// Returns once a session has waited for the service for longer than [`PATIENCE`].
async fn waits_for_service(conn: &mut PgConnection, pid: i32) -> Result<Duration> {
    let mut blocked = Duration::ZERO;
    while blocked <= PATIENCE {
        let since = Instant::now();
        tokio::time::sleep(LOOK).await;
        let by_service = sqlx::query_scalar(
            "select exists (select from pg_stat_activity a where a.pid = any (pg_blocking_pids($1)) and a.usename = $2)",
        );
        if by_service.bind(pid).bind(SERVICE).fetch_one(&mut *conn).await? {
            blocked += since.elapsed();
        }
    }
    Ok(blocked)
}
