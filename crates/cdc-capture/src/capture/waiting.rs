//! Locks the tables whose triggers change, and tries again while they are busy.
//!
//! The later readers and writers of a table queue behind a lock request that waits. So a try first reads which
//! transactions hold locks. It requests none if one of them has held its lock since the previous try.

use std::time::Duration;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::Instant;

use crate::capture::Error;
use crate::quote;
use failpoint::failpoint;
use pg_session::failure::SqlFailure;
use pg_session::table_name::Table;
use pg_session::wait;

/// The time for which a command tries again to lock its tables, from the first busy one on.
const TOTAL: Duration = Duration::from_mins(1);
/// The time that the first lock request of a table waits. The next ones wait twice, four times and eight times as long.
const FIRST_LIMIT: Duration = Duration::from_millis(50);
/// The pause before a lock request, as a multiple of the time that the request waits.
const PAUSES: u32 = 10;
const NAMED: usize = 3;

/// The tables that a command has yet to change.
pub struct Queue<T> {
    turns: Vec<NextTry<T>>,
    /// The time when a table was first found busy.
    busy_since: Option<Instant>,
    is_logged: bool,
}

pub(super) struct NextTry<T> {
    pub(super) item: T,
    pub(super) wait: Wait,
    due: Instant,
}

impl<T> Queue<T> {
    pub fn of(items: impl IntoIterator<Item = T>) -> Queue<T> {
        let turn = |item| NextTry { item, wait: Wait::default(), due: Instant::now() };
        Queue { turns: items.into_iter().map(turn).collect(), busy_since: None, is_logged: false }
    }

    /// Waits until a table is due, and returns it. Busy tables that are due precede those that were never tried.
    pub(super) async fn next(&mut self) -> Option<NextTry<T>> {
        let now = Instant::now();
        let first = (0..self.turns.len()).min_by_key(|&at| self.turns[at].due.max(now))?;
        let turn = self.turns.remove(first);
        tokio::time::sleep_until(turn.due).await;
        Some(turn)
    }

    /// Returns the result of a try. Returns `None` if the table is busy and will be tried again.
    pub(super) fn settle<R>(&mut self, mut turn: NextTry<T>, tried: Result<R, Error>) -> Option<(T, Result<R, Error>)> {
        let (table, now) = match tried {
            Err(Error::Busy { table, .. }) => (table, Instant::now()),
            done => return Some((turn.item, done)),
        };
        let since = *self.busy_since.get_or_insert(now);
        let end = since + failpoint::time("capture.wait", TOTAL);
        if now >= end {
            return Some((turn.item, Err(Error::Busy { table, holders: turn.wait.names() })));
        }
        if now - since >= failpoint::time("wait.unlogged", wait::UNLOGGED) && !self.is_logged {
            self.is_logged = true;
            let (holders, busy) = (turn.wait.names(), self.turns.len() + 1);
            tracing::warn!(
                target: wait::TARGET,
                event = "table_busy",
                table,
                holders,
                tables = busy,
                "sessions keep the table from being locked: let them end their transactions within a minute, or end the sessions"
            );
        }
        turn.due = end.min(now + turn.wait.limit() * PAUSES);
        self.turns.insert(0, turn);
        None
    }
}

/// The tries to lock one table.
#[derive(Default)]
pub(super) struct Wait {
    requests: u32,
    /// The transactions that the last try found, first those that an earlier one had found. `None` before the first
    /// try.
    holders: Option<Vec<Holder>>,
}

#[derive(sqlx_macros::FromRow)]
struct Holder {
    transaction: String,
    name: String,
    vacuumed: Vec<String>,
}

impl Wait {
    fn limit(&self) -> Duration {
        FIRST_LIMIT * (1 << self.requests.min(3))
    }

    fn names(&self) -> String {
        let holders = self.holders.as_deref().unwrap_or_default();
        let mut names: Vec<_> = holders.iter().take(NAMED).map(|holder| &*holder.name).collect();
        match holders.len() {
            0 => names.push("short transactions"),
            count if count > NAMED => names.push("others"),
            _ => {}
        }
        names.join(", ")
    }

    /// Locks a table, its partitions and its children. `name` is the table's name with its schema.
    ///
    /// A writer may hold a partition and wait for the root. Postgres ends such a writer after `deadlock_timeout`. So
    /// the request gives up after half of that time.
    ///
    /// # Errors
    /// [`Error::Busy`] if the lock was not requested or not granted.
    pub(super) async fn lock(
        &mut self,
        conn: &mut PgConnection,
        table: &Table,
        (oid, name): (Oid, &Table),
        mode: &str,
    ) -> Result<(), Error> {
        let mut holders: Vec<Holder> =
            sqlx::query_as(include_str!("waiting/holders.sql")).bind(oid).bind(mode).fetch_all(&mut *conn).await?;
        failpoint!("capture.looked");
        // Nothing is known before the second try, so each transaction counts as one that stays.
        let stays = |holder: &Holder| {
            let is_same = |earlier: &Holder| earlier.transaction == holder.transaction;
            self.holders.as_ref().is_none_or(|earlier| earlier.iter().any(is_same))
        };
        let is_held = holders.iter().any(|holder| holder.vacuumed.is_empty() && stays(holder));
        holders.sort_by_key(|holder| !stays(holder));
        let vacuumed: Vec<_> = holders.iter().flat_map(|holder| holder.vacuumed.clone()).collect();
        self.holders = Some(holders);
        if is_held {
            return Err(Error::busy(table));
        }
        end_autovacuums(conn, table, vacuumed).await?;
        let (name, limit) = (quote::relation(name), failpoint::time("capture.limit", self.limit()).as_millis());
        self.requests += 1;
        let lock = format!(
            "-- source.capture.lock
             set local lock_timeout = 0;
             select set_config('statement_timeout', least(greatest(setting::int / 2, 1), {limit})::text, true)
             from pg_settings where name = 'deadlock_timeout';
             lock table {name} in {mode} mode;
             set local statement_timeout = 0; set local lock_timeout = '400ms';
             -- The commit waits for no synchronous standby, which may be dead, while it keeps the lock.
             set local synchronous_commit = local"
        );
        let locked = sqlx::raw_sql(AssertSqlSafe(lock)).execute(conn).await;
        locked.map(drop).map_err(|cause| busy_or_else(table, cause))
    }
}

/// Ends the autovacuums of a table and its partitions, by waiting for each lock alone. Readers and writers don't queue
/// behind such a lock. Postgres ends an autovacuum for a session that has waited for `deadlock_timeout`, which is
/// longer than the request for the whole table may take.
async fn end_autovacuums(conn: &mut PgConnection, table: &Table, vacuumed: Vec<String>) -> Result<(), Error> {
    for relation in vacuumed {
        let lock = format!(
            "-- source.capture.end_autovacuum
             savepoint alone;
             select set_config('statement_timeout', (2 * setting::int)::text, true) from pg_settings where name = 'deadlock_timeout';
             lock table only {relation} in share update exclusive mode;
             rollback to alone; release alone"
        );
        let locked = sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *conn).await;
        locked.map_err(|cause| busy_or_else(table, cause))?;
    }
    Ok(())
}

fn busy_or_else(table: &Table, cause: sqlx::Error) -> Error {
    match SqlFailure::of(&cause) {
        SqlFailure::Cancelled => Error::busy(table),
        _ => Error::of_table(table, cause),
    }
}
