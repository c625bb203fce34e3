//! A pool of connections that keeps a connection at hand for a moment after its use.
//!
//! The driver's pool checks a connection when it is taken, and a query and a ping when it is given back. One that is
//! taken again within a second and a half goes around that pool, and around its limits on age and idleness.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Postgres, Row};
use tokio::runtime::Handle;

use crate::require_writable;

/// The targets of the log lines of the driver's pool.
pub const LOG_TARGETS: [&str; 2] = ["sqlx_core::pool", "sqlx::pool"];

/// Longer than the pause between two looks for work, and shorter than callers wait for a connection.
const AT_HAND: Duration = Duration::from_millis(1500);

/// The time after which a connection goes back to the driver's pool all the same, which may find it too old.
const MOST_AT_HAND: Duration = Duration::from_secs(60);

/// The timeout of a connection's check. A call of the API has 2 seconds, part of which must remain for a new
/// connection.
const CHECK_TIMEOUT: Duration = Duration::from_millis(500);

/// Checks that a connection answers in time and can write. After an error the caller drops it without the protocol's
/// goodbye message, which could hang.
pub async fn require_usable(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    match tokio::time::timeout(CHECK_TIMEOUT, require_writable(conn)).await {
        Ok(answer) => answer,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

/// Returns true if a connection answers and is in no transaction.
///
/// The driver may not know: sqlx 0.9.0 leaves the transaction of a cancelled `begin` open
/// ([#4393](https://github.com/launchbadge/sqlx/issues/4393)). The next caller would write into it, and lose the write.
pub async fn has_no_transaction(conn: &mut PgConnection) -> bool {
    // Inside a transaction, `now()` is the time of its begin.
    let asked = sqlx::raw_sql("-- session.transaction\n select now() <> statement_timestamp()");
    let is_inside = async { asked.fetch_one(conn).await?.try_get::<bool, _>(0) };
    matches!(tokio::time::timeout(CHECK_TIMEOUT, is_inside).await, Ok(Ok(false)))
}

/// A pool whose clones share its connections.
#[derive(Clone, Debug)]
pub struct Pool {
    inner: PgPool,
    shared: Arc<Mutex<AtHand>>,
    /// True if a connection at hand is checked before its use too.
    is_careful: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct PoolUse {
    pub open: u32,
    /// The number of open connections that are not in use.
    pub idle: u32,
    /// The maximum number of connections.
    pub most: u32,
}

#[derive(Debug, Default)]
struct AtHand {
    connections: Vec<(u64, Pooled)>,
    /// The number of connections that were ever put at hand.
    number: u64,
    /// The callers that wait for the driver's pool. A connection that is given back is theirs, so none is at hand then.
    waiting: usize,
}

impl AtHand {
    /// Takes a connection at hand. If there is none, the caller waits for the driver's pool.
    fn take_or_wait(&mut self) -> Option<Pooled> {
        let taken = self.connections.pop();
        self.waiting += usize::from(taken.is_none());
        taken.map(|(_, pooled)| pooled)
    }

    /// Takes all connections at hand. The caller gives them to the driver's pool, and waits for it.
    fn give_up_and_wait(&mut self) -> Vec<(u64, Pooled)> {
        self.waiting += 1;
        std::mem::take(&mut self.connections)
    }
}

impl From<PgPool> for Pool {
    fn from(inner: PgPool) -> Pool {
        Pool { inner, shared: Arc::default(), is_careful: false }
    }
}

impl Pool {
    /// Returns the same pool for callers who don't try again: a connection that fell silent a moment ago costs them no
    /// answer.
    pub fn careful(self) -> Pool {
        Pool { is_careful: true, ..self }
    }

    pub fn inner(&self) -> &PgPool {
        &self.inner
    }

    pub fn usage(&self) -> PoolUse {
        let idle = (self.inner.num_idle() + locked(&self.shared).connections.len()) as u32;
        PoolUse { open: self.inner.size(), idle, most: self.inner.options().get_max_connections() }
    }

    /// Takes a connection.
    ///
    /// # Errors
    /// If there is none within the time limit of the driver's pool.
    pub async fn acquire(&self) -> Result<Pooled, sqlx::Error> {
        let at_hand = locked(&self.shared).take_or_wait();
        if let Some(mut pooled) = at_hand {
            if !self.is_careful || require_usable(&mut pooled).await.is_ok() {
                return Ok(pooled);
            }
            pooled.close();
            // The others may be silent too. The driver's pool finds that out.
            let others = locked(&self.shared).give_up_and_wait();
            drop(others);
        }
        let _waiting = WaitingCaller(&self.shared);
        self.inner.acquire().await.map(|conn| Pooled { conn: Some(conn), taken_at: Instant::now() })
    }

    /// Gives a connection back whose last statement was answered, and which is in no transaction.
    pub fn give_back(&self, pooled: Pooled) {
        let mut shared = locked(&self.shared);
        if shared.waiting > 0 || pooled.taken_at.elapsed() > MOST_AT_HAND {
            return;
        }
        shared.number += 1;
        let number = shared.number;
        shared.connections.push((number, pooled));
        drop(shared);
        // A pool that nobody has any more keeps nothing at hand.
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            tokio::time::sleep(AT_HAND).await;
            let Some(shared) = shared.upgrade() else { return };
            let mut shared = locked(&shared);
            let unused = shared.connections.iter().position(|(other, _)| *other == number);
            let unused = unused.map(|place| shared.connections.remove(place));
            drop(shared);
            drop(unused);
        });
    }
}

fn locked(shared: &Mutex<AtHand>) -> MutexGuard<'_, AtHand> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A caller that waits for the driver's pool, as counted in `waiting`.
struct WaitingCaller<'p>(&'p Mutex<AtHand>);

impl Drop for WaitingCaller<'_> {
    fn drop(&mut self) {
        locked(self.0).waiting -= 1;
    }
}

/// A connection of a pool. On drop, the driver's pool has it back.
#[derive(Debug)]
pub struct Pooled {
    conn: Option<PoolConnection<Postgres>>,
    /// The time when the driver's pool lent it.
    taken_at: Instant,
}

impl Pooled {
    /// Closes the connection without the protocol's goodbye message, which could hang.
    pub fn close(mut self) {
        drop(self.conn.take().map(PoolConnection::detach));
    }
}

impl Deref for Pooled {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.conn.as_ref().expect("only `close` and `drop` take the connection")
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.conn.as_mut().expect("only `close` and `drop` take the connection")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        // The driver's pool takes a connection back in a task.
        if let Some(conn) = self.conn.take()
            && Handle::try_current().is_err()
        {
            drop(conn.detach());
        }
    }
}
