//! Stores the control plane in Postgres: jobs, their queue, watermarks and keys.
//!
//! Only this module writes the tables that the service owns. Each statement is one named function here. `worker`
//! decides what to retry, and `http` decides what a client is told.

pub mod acknowledgements;
pub mod activity;
pub mod commit;
pub mod datasets;
pub mod deliveries;
pub mod destinations;
pub mod due;
mod export_row;
pub mod files;
pub mod gauges;
pub mod jobs;
mod key_shares;
pub mod keys;
pub mod lanes;
pub mod lease;
pub mod lists;
pub mod manifests;
mod mask_secret;
pub mod moments;
pub mod probe;
pub mod queue;
pub mod retention;
pub mod schedules;
mod submissions;
pub mod tracked;
pub mod transitions;
pub mod watermarks;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgArguments, PgListener, PgPoolOptions};
use sqlx::query::Query;
use sqlx::{Connection, PgConnection, Postgres};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, broadcast};
use uuid::Uuid;

use crate::event::Listener;
use cdc_destination::{BadDatabaseId, DatabaseId};
use cdc_manifest::JobId;
use pg_session::failure::{self, SqlFailure};
use pg_session::pool::{Pool, Pooled};
use pg_session::{self, session_name};

/// The channel on which Postgres notifies processes of new jobs and requested cancellations. A process that misses a
/// notification finds the job by polling.
const CHANNEL: &str = "cdc_export";

/// The time after which a process whose claims all fail is not ready.
const CLAIMS_FAIL_AFTER: Duration = Duration::from_secs(60);

/// The pause between two checks that the listener's connection still works.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(30);

/// The reason why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres can't be reached, is starting or stopping, or has no free connection.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// The statement conflicted with another transaction, or waited too long for its lock.
    #[error("serialization conflict with another transaction; retry")]
    LockConflict(#[source] sqlx::Error),
    /// The role lacks a right on an object of the service. The text is the message from Postgres, which names the
    /// object.
    #[error("the database role lacks a right: {0}")]
    Denied(String),
    #[error("the database refused a statement")]
    Sql(#[source] sqlx::Error),
    #[error(
        "commits wait for the server's synchronous standby (synchronous_standby_names), which is not there or doesn't answer: \
         bring it back or change that setting. What was asked for may have been done: ask again with the same Idempotency-Key"
    )]
    StandbyMissing,
    /// A row has a value that this version of the service doesn't know. A newer version may have written it.
    #[error("a row in the database has a value that this version of the service doesn't know")]
    Unknown(#[from] pg_rows::words::UnknownWord),
    #[error(
        "cannot read the system identifier of the database: function `cdc_export.database_id` returned no identity"
    )]
    Identity(#[from] BadDatabaseId),
}

impl From<sqlx::Error> for Error {
    /// Classifies an error by the action that it calls for.
    fn from(error: sqlx::Error) -> Error {
        let error = match error {
            // The error of `export_row::parsed`.
            sqlx::Error::Decode(cause) => match cause.downcast() {
                Ok(error) => return *error,
                Err(cause) => sqlx::Error::Decode(cause),
            },
            other => other,
        };
        match SqlFailure::of(&error) {
            // A read-only server is about to be replaced or promoted.
            // Some poolers report their own connection errors like those of a foreign server.
            SqlFailure::Unavailable
            | SqlFailure::Starting
            | SqlFailure::Cancelled
            | SqlFailure::ReadOnly
            | SqlFailure::ForeignServer => Error::Unavailable(error),
            SqlFailure::LockTimeout | SqlFailure::Conflict => Error::LockConflict(error),
            SqlFailure::Denied => {
                Error::Denied(error.as_database_error().map(|told| told.message().to_owned()).unwrap_or_default())
            }
            _ => Error::Sql(error),
        }
    }
}

impl Error {
    /// Returns the class of the cause of an unavailable database.
    pub fn class_of_outage(&self) -> &'static str {
        match self {
            Error::Unavailable(cause) | Error::LockConflict(cause) => failure::class_of_outage(cause),
            _ => "another error",
        }
    }

    /// Returns true if the statement waited too long for a lock, or ran for too long.
    pub fn is_wait_timeout(&self) -> bool {
        match self {
            Error::Unavailable(sqlx::Error::PoolTimedOut) => true,
            Error::Unavailable(cause) => SqlFailure::of(cause) == SqlFailure::Cancelled,
            Error::LockConflict(_) => true,
            _ => false,
        }
    }
}

/// The control plane, accessed over one pool of connections.
///
/// # Errors
/// Every call fails if the database fails. The documentation of a call names its other errors.
#[derive(Clone, Debug)]
pub struct Store {
    pool: Pool,
    /// The destinations that no process uses, and since when this process knows that.
    unused: Arc<Mutex<HashMap<Uuid, Instant>>>,
    /// Since when all claims of this process have failed. `None` if the last one succeeded.
    claims_fail_since: Arc<Mutex<Option<Instant>>>,
    /// True if a worker has claimed a job since this process recorded its destination.
    has_claimed: Arc<AtomicBool>,
    submissions: Arc<submissions::Submissions>,
    key_shares: Arc<key_shares::KeyShares>,
    /// The share of the caller's key. `None` if the caller has no key.
    key_share: Option<Arc<key_shares::KeyShare>>,
    endings: broadcast::Sender<transitions::StatusChange>,
    /// Wakes an idle worker of this process.
    work: Arc<Notify>,
    is_of_workers: bool,
    listeners: Arc<[Listener]>,
    call_timeout: Option<Duration>,
}

impl Store {
    /// The acquire timeout of the pool limits how long a statement waits for a connection.
    pub fn new(pool: impl Into<Pool>) -> Store {
        Store {
            pool: pool.into(),
            unused: Arc::default(),
            claims_fail_since: Arc::default(),
            has_claimed: Arc::default(),
            submissions: Arc::default(),
            key_shares: Arc::default(),
            key_share: None,
            endings: broadcast::Sender::new(64),
            work: Arc::default(),
            is_of_workers: false,
            listeners: Arc::default(),
            call_timeout: None,
        }
    }

    /// Returns the same store with a time limit on each call, as in [`with_timeout`].
    pub fn within(self, call_timeout: Duration) -> Store {
        Store { call_timeout: Some(call_timeout), ..self }
    }

    /// A worker that has ended a job claims the one that waited for it, so it wakes no other worker.
    pub fn for_workers(self) -> Store {
        Store { is_of_workers: true, ..self }
    }

    /// Returns the signal that a job may be ready. `notify_last` wakes the idle worker that was busy last.
    pub fn work(&self) -> &Notify {
        &self.work
    }

    /// Returns the same store over another pool. Both stores report the same endings.
    pub fn over(&self, pool: impl Into<Pool>) -> Store {
        Store { pool: pool.into(), ..self.clone() }
    }

    pub async fn database(&self) -> Result<DatabaseId, Error> {
        let statement = sqlx::query_scalar("-- store.database\n select cdc_export.database_id()");
        let database: String = self.with(async |conn| statement.fetch_one(conn).await).await?;
        Ok(database.parse()?)
    }

    /// Returns true if the latest job is one of another database: a restore may be under way.
    pub async fn is_restored(&self) -> Result<bool, Error> {
        let statement = sqlx::query_scalar(
            "-- store.is_restored
             select coalesce((select j.database_id from cdc_export.jobs j order by j.id desc limit 1)
               <> cdc_export.database_id(), false)",
        );
        self.with(async |conn| statement.fetch_one(conn).await).await
    }

    /// Records that a claim of this process failed, or what it needs first.
    pub fn claim_failed(&self) {
        self.claims_fail_since.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    }

    /// Returns the time for which all claims of this process have failed, if that is a minute or more.
    pub fn claims_fail(&self) -> Option<Duration> {
        let since = *self.claims_fail_since.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = failpoint::time("store.claims_fail", CLAIMS_FAIL_AFTER);
        since.map(|since| since.elapsed()).filter(|time| *time >= limit)
    }

    /// Runs `call` with a connection of the pool, as soon as the share of the caller's key allows it.
    ///
    /// After an error, or if the caller drops this future, the connection keeps its place in the pool until the server
    /// has ended the statement.
    pub(crate) async fn with<T, E>(&self, call: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>) -> Result<T, Error>
    where
        Error: From<E>,
    {
        // Boxed, because an unoptimized build reserves room for this future several times in each caller. The stack of
        // a worker has room for only a few copies.
        let called = Box::pin(async {
            let permit = match &self.key_share {
                Some(share) => share.connection().await,
                None => None,
            };
            let mut conn = EndedOnDrop { conn: Some(self.pool.acquire().await?), permit };
            let done = call(conn.get()).await?;
            conn.give_back(&self.pool);
            Ok(done)
        });
        self.in_time(called).await
    }

    /// Runs a statement and returns the number of rows that it inserted, updated or deleted.
    async fn execute(&self, statement: Query<'_, Postgres, PgArguments>) -> Result<u64, Error> {
        Ok(self.with(async |conn| statement.execute(conn).await).await?.rows_affected())
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match self.call_timeout {
            Some(timeout) => with_timeout(timeout, call).await,
            None => call.await,
        }
    }

    /// Runs `call` in a transaction, over a connection as in [`with`](Store::with). Commits the transaction if `call`
    /// succeeds.
    async fn transaction<T, E>(&self, call: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>) -> Result<T, Error>
    where
        Error: From<E>,
    {
        let committed = self.with::<T, Error>(async |conn| {
            let mut tx = conn.begin().await?;
            let done = call(&mut tx).await?;
            tx.commit().await?;
            Ok(done)
        });
        committed.await
    }

    /// Runs `call` in a transaction in which Postgres reads rows in the order of an index.
    ///
    /// This overrides the estimates of the planner, so Postgres never sorts a whole list to return one page.
    async fn in_index_order<T, E>(&self, call: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>) -> Result<T, Error>
    where
        Error: From<E>,
    {
        let read = self.transaction::<T, Error>(async |tx| {
            sqlx::raw_sql("-- store.index_order\n set local enable_seqscan = off; set local enable_bitmapscan = off")
                .execute(&mut *tx)
                .await?;
            Ok(call(tx).await?)
        });
        read.await
    }

    pub async fn listen(&self) -> Result<Notifications, Error> {
        // Uses a pool of its own. A dropped listener sends a message to the server before it gives its connection back,
        // and waits forever if the server doesn't answer.
        let own = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
        let own = own.after_connect(|conn, _| Box::pin(pg_session::set_up(conn, "")));
        let own = own.connect_lazy_with((*self.pool.inner().connect_options()).clone());
        let listening = self.in_time(async {
            let mut listener = PgListener::connect_with(&own).await?;
            listener.listen(CHANNEL).await?;
            Ok(Notifications { listener, store: self.clone(), ping_at: Instant::now() })
        });
        listening.await
    }
}

/// Gives up a call to the store after `timeout`. The call may have had its effect all the same. Nothing else ends a
/// call when the network drops packets.
pub async fn with_timeout<T>(timeout: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    failure::with_timeout(timeout, call, Error::Unavailable).await
}

/// The time that a connection has to end a statement that its caller gave up. The server ends the statement earlier. A
/// server that can't be reached doesn't answer.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// A pooled connection whose statement is ended on drop, unless the connection was given back.
///
/// If the connection were closed at once, the pool would open another one while the statement still waited for its
/// lock. The server would then have more connections than the pool allows.
struct EndedOnDrop {
    conn: Option<Pooled>,
    /// The place in the share of the caller's key, which is free again when the statement has ended.
    permit: Option<OwnedSemaphorePermit>,
}

impl EndedOnDrop {
    fn get(&mut self) -> &mut PgConnection {
        self.conn.as_mut().expect("`give_back` consumes the value, so the connection is present before")
    }

    fn give_back(mut self, pool: &Pool) {
        if let Some(conn) = self.conn.take() {
            pool.give_back(conn);
        }
    }
}

impl Drop for EndedOnDrop {
    fn drop(&mut self) {
        let Some(mut conn) = self.conn.take() else { return };
        let permit = self.permit.take();
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                if !matches!(tokio::time::timeout(END_TIMEOUT, conn.ping()).await, Ok(Ok(()))) {
                    conn.close();
                }
                drop(permit);
            })),
            Err(_) => conn.close(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification {
    /// A job may be ready.
    Work,
    Cancel(JobId),
}

#[derive(Debug)]
pub struct Notifications {
    listener: PgListener,
    store: Store,
    ping_at: Instant,
}

impl Notifications {
    /// Waits for the next notification. Reports a lost connection as [`Notification::Work`], because a notification may
    /// have been missed.
    ///
    /// # Errors
    /// If the connection can't be restored, or doesn't answer each half minute.
    pub async fn next(&mut self) -> Result<Notification, Error> {
        loop {
            match tokio::time::timeout_at(self.ping_at.into(), self.listener.try_recv()).await {
                Ok(received) => {
                    let job = received?.and_then(|hint| hint.payload().parse::<uuid::Uuid>().ok());
                    return Ok(job.map_or(Notification::Work, |job| Notification::Cancel(job.into())));
                }
                Err(_) => {
                    self.ping_at = Instant::now() + failpoint::time("store.listening", LISTEN_TIMEOUT);
                    let is_failing = self.store.claims_fail().is_some();
                    let name = if is_failing { session_name::of_failing() } else { session_name::of_process() };
                    let ping = sqlx::query("-- store.listening\n select set_config('application_name', $1, false)");
                    let ping = ping.bind(name).execute(&mut self.listener);
                    with_timeout(Duration::from_secs(5), async { Ok(ping.await.map(drop)?) }).await?;
                }
            }
        }
    }
}
