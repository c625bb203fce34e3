//! The control plane in Postgres: jobs, their queue, watermarks and keys.
//!
//! The only module that writes the tables which the service owns. A statement is one named function here; `worker`
//! decides what is tried again, and `http` what a client is told.

pub mod acknowledgements;
pub mod commit;
pub mod deliveries;
pub mod files;
pub mod gauges;
mod job_row;
pub mod jobs;
pub mod keys;
pub mod lanes;
pub mod lease;
pub mod lists;
pub mod manifests;
mod open_jobs;
pub mod queue;
pub mod retention;
pub mod schedules;
pub mod tracked;
pub mod transitions;
pub mod watermarks;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgListener, PgPoolOptions};
use sqlx::query::Query;
use sqlx::{Connection, PgConnection, PgPool, Postgres};
use tokio::runtime::Handle;
use tokio::sync::broadcast;

use crate::connection::failure::{self, SqlFailure};
use crate::database::{BadDatabaseId, DatabaseId};
use crate::event::Listener;
use crate::job::JobId;

/// The channel of notifications: a job is new, or one was asked to stop. A process that misses a notification finds out
/// by polling.
const CHANNEL: &str = "cdc_export";

/// After this long without a notification the listener asks whether its connection still lives.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres can't be reached, is starting or stopping, or has no free connection.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// Another transaction, or its lock, was in the way.
    #[error("serialization conflict with another transaction; retry")]
    LockConflict(#[source] sqlx::Error),
    /// The role lacks a right to what the service has in the database. What Postgres said, which names the object.
    #[error("the database role lacks a right: {0}")]
    Denied(String),
    /// Postgres refused the statement.
    #[error("the database refused a statement")]
    Sql(#[source] sqlx::Error),
    /// Rows are of transactions that the server has not begun: a statement that writes to such a row waits for ever.
    #[error(
        "Postgres's transaction ids were set back, to before {0}: what later ones wrote can't be seen or changed. Stop it and set them forward (`pg_resetwal -x`), or restore a backup"
    )]
    XidsSetBack(String),
    /// A row holds what this version of the service doesn't know: a newer one may have written it.
    #[error("the database holds an unknown value")]
    Unknown(#[from] pg_rows::words::UnknownWord),
    /// The database's function returned a text that is no identity.
    #[error(
        "cannot read the system identifier of the database: function `cdc_export.database_id` returned no identity"
    )]
    Identity(#[from] BadDatabaseId),
}

impl From<sqlx::Error> for Error {
    /// Says of an error what can be done about it.
    fn from(error: sqlx::Error) -> Error {
        match SqlFailure::of(&error) {
            // A server that is read-only for the moment is about to be replaced, or promoted.
            SqlFailure::Unavailable | SqlFailure::Starting | SqlFailure::Cancelled | SqlFailure::ReadOnly => {
                Error::Unavailable(error)
            }
            SqlFailure::LockTimeout | SqlFailure::Conflict => Error::LockConflict(error),
            SqlFailure::Denied => {
                Error::Denied(error.as_database_error().map(|told| told.message().to_owned()).unwrap_or_default())
            }
            _ => Error::Sql(error),
        }
    }
}

impl Error {
    /// Returns true if the statement waited for a lock, or ran, for too long.
    pub fn is_wait_timeout(&self) -> bool {
        match self {
            Error::Unavailable(cause) => SqlFailure::of(cause) == SqlFailure::Cancelled,
            Error::LockConflict(_) => true,
            _ => false,
        }
    }
}

/// The position in the queue at which the next claim scan begins.
#[derive(Clone, Copy, Debug)]
struct ClaimScanStart {
    /// No job was ready before this time when the queue was read.
    run_at: DateTime<Utc>,
    /// When the queue was read.
    read_at: Instant,
}

/// The control plane's statements over one pool of connections.
///
/// # Errors
/// Every call fails if the database fails. Its own documentation names what else makes it fail.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
    scan_start: Arc<Mutex<Option<ClaimScanStart>>>,
    /// The bound on open jobs.
    open_jobs: Arc<open_jobs::OpenJobs>,
    /// The positions at which the next runs of retention begin.
    cursors: Arc<retention::Cursors>,
    /// Tells of jobs that this process brought to their end.
    endings: broadcast::Sender<JobId>,
    /// The receivers of the ends of exports.
    listeners: Arc<[Listener]>,
    /// The time after which a call is given up; `None`: never.
    call_timeout: Option<Duration>,
}

impl Store {
    /// Statements over this pool. Its acquire timeout bounds how long any of them waits for a connection.
    pub fn new(pool: PgPool) -> Store {
        Store {
            pool,
            scan_start: Arc::default(),
            open_jobs: Arc::default(),
            cursors: Arc::default(),
            endings: broadcast::Sender::new(64),
            listeners: Arc::default(),
            call_timeout: None,
        }
    }

    /// The same control plane, whose calls are given up after this time as in [`with_timeout`].
    pub fn within(self, call_timeout: Duration) -> Store {
        Store { call_timeout: Some(call_timeout), ..self }
    }

    /// The same control plane over another pool: both tell of the same endings.
    pub fn over(&self, pool: PgPool) -> Store {
        Store { pool, ..self.clone() }
    }

    /// The identity of the database.
    pub async fn database(&self) -> Result<DatabaseId, Error> {
        let statement = sqlx::query_scalar("-- store.database\n select cdc_export.database_id()");
        let database: String = self.with(async |conn| statement.fetch_one(conn).await).await?;
        Ok(database.parse()?)
    }

    /// Checks that Postgres answers, and that its transaction ids let it write to the service's tables.
    pub async fn ping(&self) -> Result<(), Error> {
        match self.with(xid_beyond).await? {
            Some(xid) => Err(Error::XidsSetBack(xid)),
            None => Ok(()),
        }
    }

    /// Runs `call` with a connection of the pool. After an error, or if this call is given up half-way, the connection
    /// keeps its place in the pool until the server has ended the statement.
    pub(crate) async fn with<T, E>(&self, call: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>) -> Result<T, Error>
    where
        Error: From<E>,
    {
        // Boxed: without optimization each future around it has room for it several times, and a worker's stack for few
        // of them.
        let called = Box::pin(async {
            let mut conn = EndedOnDrop(Some(self.pool.acquire().await?));
            let done = call(conn.get()).await?;
            conn.give_back();
            Ok(done)
        });
        self.in_time(called).await
    }

    /// Runs a statement, and returns how many rows it made or changed.
    async fn execute(&self, statement: Query<'_, Postgres, PgArguments>) -> Result<u64, Error> {
        Ok(self.with(async |conn| statement.execute(conn).await).await?.rows_affected())
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match self.call_timeout {
            Some(timeout) => with_timeout(timeout, call).await,
            None => call.await,
        }
    }

    /// Runs `call` in a transaction, which is committed if `call` succeeds, over a connection as of
    /// [`with`](Store::with).
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

    /// Runs `call` in a transaction in which Postgres reads from an index, in the index's order, whatever the planner's
    /// estimates: a page of a long list is never had by sorting the list.
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

    /// Listens for notifications on a connection of its own.
    pub async fn listen(&self) -> Result<Notifications, Error> {
        // In a pool of its own: a listener that is dropped sends a goodbye before it gives its connection back, and
        // waits for ever where the server doesn't answer.
        let own = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
        let own = own.connect_lazy_with((*self.pool.connect_options()).clone());
        let listening = self.in_time(async {
            let mut listener = PgListener::connect_with(&own).await?;
            listener.listen(CHANNEL).await?;
            Ok(Notifications { listener })
        });
        listening.await
    }
}

/// Gives up a call to the store after `timeout`. Whether the call had an effect is not known.
///
/// # Errors
/// If the call fails or takes too long: nothing else ends a call when the network swallows packets.
pub async fn with_timeout<T>(timeout: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    failure::with_timeout(timeout, call, Error::Unavailable).await
}

/// A transaction id that a row has of a transaction which has not begun.
async fn xid_beyond(conn: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    // Every process writes to this table's rows every ten seconds: if the next version of one is of a transaction that
    // has not begun, rows of other tables are too.
    let beyond: Option<String> = sqlx::query_scalar(
        "-- store.ping
         select d.xmax::text from cdc_export.destinations d where age(d.xmax) < 0 order by age(d.xmax) limit 1",
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(xid) = beyond else { return Ok(None) };
    // A transaction that began after the first statement's snapshot has begun by now.
    let statement = sqlx::query_scalar("-- store.ping.again\n select age($1::text::xid) < 0").bind(&xid);
    let still: bool = statement.fetch_one(conn).await?;
    Ok(still.then_some(xid))
}

/// The longest time that a connection may take to end a statement that its caller has given up. The server ends a
/// statement earlier; one that can't be reached doesn't answer.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection of the pool whose statement is ended when it is dropped, unless it was given back. If it were closed at
/// once, the pool would open another one, while the statement went on to wait for its lock: the server would have more
/// connections than were promised.
struct EndedOnDrop(Option<PoolConnection<Postgres>>);

impl EndedOnDrop {
    fn get(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("it is there until it is given back, which consumes it")
    }

    fn give_back(mut self) {
        self.0.take();
    }
}

impl Drop for EndedOnDrop {
    fn drop(&mut self) {
        let Some(mut conn) = self.0.take() else { return };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                if !matches!(tokio::time::timeout(END_TIMEOUT, conn.ping()).await, Ok(Ok(()))) {
                    drop(conn.detach());
                }
            })),
            Err(_) => drop(conn.detach()),
        }
    }
}

/// A notification from Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification {
    /// There may be work.
    Work,
    /// This job was asked to stop.
    Cancel(JobId),
}

/// The listener's notifications.
#[derive(Debug)]
pub struct Notifications {
    listener: PgListener,
}

impl Notifications {
    /// Waits for the next notification. A lost connection counts as one, since a notification may have been missed.
    ///
    /// # Errors
    /// If the connection is lost for good, or doesn't answer after half a minute's silence.
    pub async fn next(&mut self) -> Result<Notification, Error> {
        loop {
            match tokio::time::timeout(LISTEN_TIMEOUT, self.listener.try_recv()).await {
                Ok(received) => {
                    let job = received?.and_then(|hint| hint.payload().parse::<uuid::Uuid>().ok());
                    return Ok(job.map_or(Notification::Work, |job| Notification::Cancel(job.into())));
                }
                Err(_) => {
                    let question = sqlx::query("-- store.listening\n select 1").execute(&mut self.listener);
                    with_timeout(Duration::from_secs(5), async { Ok(question.await.map(drop)?) }).await?;
                }
            }
        }
    }
}
