//! A backfill: now and then, the tables' owner changes very many rows at once. The change log then exceeds its bound.

use std::time::Duration;

use anyhow::Result;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::cluster::SERVICE;
use crate::random::Random;
use crate::trial::World;

/// A backfill. Its `number` makes the values of its rows differ from those of other backfills.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backfill {
    rows: Rows,
    number: u64,
    /// Time for which the transaction stays open after its last change.
    open_for: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Rows {
    Users(u64),
    /// Inserts rows of `users` that nobody else changes, and updates them. Deletes these rows if they exist.
    UsersBeside,
    Small(&'static str, u64),
}

const BESIDE: (u64, u64) = (3_000_001, 3_001_500);

impl Backfill {
    pub(crate) fn draw(random: &mut Random) -> Backfill {
        let times = random.between(15, 25);
        let rows = match random.below(100) {
            0..45 => Rows::Users(random.between(2, 4)),
            45..70 => Rows::UsersBeside,
            70..85 => Rows::Small("parts", times),
            _ => Rows::Small("calm", times),
        };
        let open_for = if random.percent(30) { random.millis(200, 2_000) } else { Duration::ZERO };
        Backfill { rows, number: random.below(1_000_000_000), open_for }
    }

    /// Returns the table, the statement, and the number of its executions.
    fn sql(self) -> (&'static str, String, u64) {
        let number = self.number;
        // Each statement has its own time, so no two versions of a row have the same text.
        let text = format!("'backfill-{number}-' || extract(epoch from statement_timestamp())");
        let (first, last) = BESIDE;
        match self.rows {
            // Half of these backfills keep `updated_at`, like a backfill that is meant to go unnoticed.
            Rows::Users(times) => {
                let updated = if number.is_multiple_of(2) { "updated_at" } else { "now()" };
                ("users", format!("update users set name = {text}, updated_at = {updated}"), times)
            }
            Rows::UsersBeside => {
                let sql = format!(
                    "insert into users (id, name, email, created_at, updated_at)
                     select n, {text}, 'beside-' || n, now(), now() from generate_series({first}, {last}) n
                     on conflict (id) do update set name = excluded.name"
                );
                ("users", sql, 4)
            }
            Rows::Small(table, times) => (table, format!("update {table} set note = {text}"), times),
        }
    }
}

/// Runs a backfill, in at most three attempts: a locked table ends an attempt, and so may a change of the clock.
pub(crate) async fn make(world: &World, backfill: Backfill) {
    for _ in 0..3 {
        match make_once(world, backfill).await {
            Ok(rows) => return world.report.announce(&format!("owner: a backfill changed {rows} rows")),
            Err(error) => world.report.announce(&format!("{backfill:?} went wrong: {error:#}")),
        }
    }
}

/// Runs a backfill in one transaction. Returns the number of changed rows.
async fn make_once(world: &World, backfill: Backfill) -> Result<u64> {
    let mut conn = world.cluster.connect_at_last().await?;
    conn.execute("set lock_timeout = '10s'").await?;
    let (table, sql, times) = backfill.sql();
    let mut tx = conn.begin().await?;
    // Without this lock, the backfill and a writer would now and then deadlock.
    let begin = format!("set local role {SERVICE}; lock table {table} in share row exclusive mode");
    tx.execute(AssertSqlSafe(begin)).await?;
    let (first, last) = BESIDE;
    let mut rows = 0;
    if matches!(backfill.rows, Rows::UsersBeside) {
        let sql = format!("delete from users where id between {first} and {last}");
        rows = tx.execute(AssertSqlSafe(sql)).await?.rows_affected();
    }
    let times = if rows > 0 { 0 } else { times };
    for _ in 0..times {
        rows += tx.execute(AssertSqlSafe(sql.clone())).await?.rows_affected();
    }
    tokio::time::sleep(backfill.open_for).await;
    tx.commit().await?;
    Ok(rows)
}
