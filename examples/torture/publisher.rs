//! Another database of the cluster. A subscription writes its rows into the tracked table `fed`, where it owns the even
//! keys. The subscription comes and goes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::patience::at_last;
use crate::random::Random;
use crate::shapes::KEYS;
use crate::trial::World;
use crate::writers::Writer;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subscribing {
    /// Disables the subscription, which later goes on from the same point.
    Pause,
    Resume,
    /// Drops the subscription and deletes its rows. Makes another one, which begins with a copy of everything.
    Anew,
}

impl Subscribing {
    pub(crate) fn draw(random: &mut Random) -> Subscribing {
        match random.below(100) {
            0..30 => Subscribing::Pause,
            30..65 => Subscribing::Resume,
            _ => Subscribing::Anew,
        }
    }
}

pub(crate) async fn make(world: &World) -> Result<()> {
    world.cluster.connect().await?.execute("create database publisher").await?;
    let sql = format!(
        "create table fed (id bigint primary key, note text);
         insert into fed select 2 * n, 'publisher-' || n from generate_series(1, {KEYS}) n;
         create publication torture for table fed;"
    );
    world.cluster.connect_to("publisher").await?.execute(AssertSqlSafe(sql)).await?;
    Ok(())
}

/// Makes a move. Announces an error and goes on, since Postgres may be down.
pub(crate) async fn make_move(world: &World, subscribing: Subscribing) {
    let done = async {
        let mut conn = world.cluster.connect_at_last().await?;
        conn.execute("set lock_timeout = '5s'").await?;
        let subscribed = "select exists (select from pg_subscription where subname = 'torture')";
        let subscribed: bool = sqlx::query_scalar(subscribed).fetch_one(&mut conn).await?;
        match subscribing {
            Subscribing::Pause | Subscribing::Resume if subscribed => {
                let what = if subscribing == Subscribing::Pause { "disable" } else { "enable" };
                conn.execute(AssertSqlSafe(format!("alter subscription torture {what}"))).await?;
            }
            _ => subscribe_anew(world, &mut conn, subscribed).await?,
        }
        anyhow::Ok(())
    };
    if let Err(error) =
        tokio::time::timeout(Duration::from_secs(30), done).await.map_err(Into::into).and_then(|done| done)
    {
        world.report.announce(&format!("{subscribing:?} went wrong: {error:#}"));
    }
}

async fn subscribe_anew(world: &World, conn: &mut PgConnection, subscribed: bool) -> Result<()> {
    if subscribed {
        leave(world, conn).await?;
    }
    let mut publisher = world.cluster.connect_to("publisher").await?;
    publisher
        .execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = 'publisher' and not active;
             select pg_create_logical_replication_slot('torture', 'pgoutput')",
        )
        .await?;
    conn.execute("delete from fed where id % 2 = 0").await?;
    // The statement that subscribes can't make a slot in the same cluster.
    let sql = format!(
        "create subscription torture connection '{}' publication torture with (create_slot = false, slot_name = 'torture')",
        world.cluster.publisher()
    );
    conn.execute(AssertSqlSafe(sql)).await?;
    Ok(())
}

/// Drops the subscription, and leaves its slots to the next one.
async fn leave(world: &World, conn: &mut PgConnection) -> Result<()> {
    conn.execute("alter subscription torture disable").await?;
    conn.execute("alter subscription torture set (slot_name = none)").await?;
    conn.execute("drop subscription torture").await?;
    no_worker(world).await
}

async fn no_worker(world: &World) -> Result<()> {
    let workers = "select count(*) from pg_stat_activity where backend_type = 'logical replication worker'";
    at_last(Duration::from_secs(10), || async {
        let left: i64 = sqlx::query_scalar(workers).fetch_one(&mut world.cluster.connect().await?).await?;
        ensure!(left == 0, "a worker of the subscription goes on");
        Ok(())
    })
    .await
}

/// Disables the subscription, so that the last exports read a table at rest.
pub(crate) async fn rest(world: &World) -> Result<()> {
    let mut conn = world.cluster.connect_at_last().await?;
    let sql = "select count(*) from pg_subscription where subname = 'torture'";
    if sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut conn).await? > 0 {
        conn.execute("alter subscription torture disable").await?;
    }
    no_worker(world).await
}

/// Writes to the other database until the writers must stop. Returns the number of committed transactions.
pub(crate) async fn write(world: Arc<World>) -> usize {
    let change = |random: &mut Random, number| {
        let key = 2 * random.between(1, KEYS);
        match random.below(100) {
            0..60 => format!(
                "insert into fed values ({key}, 'p-{number}') on conflict (id) do update set note = excluded.note"
            ),
            60..80 => format!("update fed set note = 'p-{number}-' || id where id between {key} and {key} + 6"),
            80..85 => format!("update fed set id = id + 2, note = 'p-{number}' where id = {key}"),
            85..95 => format!("delete from fed where id = {key}"),
            _ => format!("delete from fed where id = {key}; insert into fed values ({key}, 'p-{number}')"),
        }
    };
    let writer = Writer {
        database: "publisher",
        random: Random::new(world.seed, 160),
        change: Box::new(change),
        rest: |random| random.millis(20, 120),
        pause: (100, 800),
        replicating: 0,
    };
    writer.write(&world).await
}
