//! The database of the service: pools of connections, checks of the server, and the migration of the service's schema.
//!
//! Creates the service's tables. The modules `store` and `source` read and write them.

pub mod download;
mod needed;
mod pooler;
mod preview;
mod reach;
mod schema;
mod search_path;
mod url;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};

pub use schema::{RequiredGrants, migrate, preview_of, require_migrated};
pub use url::{BadUrl, NamedDatabase};

use crate::postgres::reach::{CONNECT_TIMEOUT, no_answer, unreachable};
use crate::telemetry::log_throttle::LogThrottle;
use pg_session::failure::{SqlFailure, chain};
use pg_session::pool::{has_no_transaction, require_usable};
use pg_session::session_name;
use pg_session::wait;

/// The oldest supported version of Postgres. The service needs `pg_current_snapshot` and xid8.
const OLDEST: i32 = 130_000;

/// The time for which a start waits for a server that is itself starting.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The reasons why the database can't be used. Each message is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, or none that can write. The text has the reason and a remedy.
    #[error("{0}")]
    Unreachable(String),
    #[error("Postgres {0} is too old: 13 or later is needed")]
    TooOld(String),
    /// The server lacks a function or a catalog, or the role may not use it.
    #[error(
        "this Postgres refuses the service {name}, which its exports need: {refusal}. An administrator can GRANT a right that is missing; \
         a server that lacks it can't be used (docs/POSTGRES.md, On a managed Postgres)"
    )]
    Lacking {
        name: String,
        /// The message of Postgres.
        refusal: String,
    },
    /// The search_path finds a table of another owner that has the name of one of the service's tables.
    #[error(
        "the database has a table `{0}` that this service did not make: give the service a database or a search_path of its own; \
         a service's own table that is left of a dropped schema cdc_export can be dropped"
    )]
    Foreign(String),
    #[error("the database role `{role}` may not {action}: {remedy}")]
    Denied {
        role: String,
        action: &'static str,
        /// The missing grant, or the role that has it.
        remedy: String,
    },
    /// The search_path names no schema that the role may use, other than Postgres's and ours.
    #[error(
        "the search_path of the role leads to no schema, so the service's tables `exports` and `watermarks` have no place: set it with ALTER ROLE or ALTER DATABASE"
    )]
    NoSchema,
    /// The service's tables exist, but the search_path doesn't find them.
    #[error(
        "the service's table `{0}` can't be found: the search_path must lead to its schema, and the role have USAGE on that"
    )]
    Hidden(String),
    #[error(
        "this needs up to {needed} connections, and Postgres gives the role {allowed} at most: lower WORKERS, READERS or API_CONNECTIONS, or raise the server's max_connections or the limit of the role or database"
    )]
    TooFewConnections {
        needed: u32,
        /// The number of connections that the server, the role and the database allow.
        allowed: i32,
    },
    /// A pooler assigns a session for one transaction or one statement only.
    #[error(
        "DATABASE_URL goes through a pooler in transaction mode, and the service needs sessions of its own (LISTEN, prepared statements, locks): connect to Postgres directly, or to a pool in session mode"
    )]
    Pooled,
    #[error(
        "a second connection to Postgres gets no answer: where a pooler is in between, its pool is too small for the service"
    )]
    OneSession,
    #[error("there is no cdc-export in this database yet: run `cdc-export migrate`")]
    NotMigrated,
    /// A migration was interrupted.
    #[error("some of the service's tables are missing in this database: run `cdc-export migrate`")]
    Incomplete,
    #[error(
        "another build of cdc-export made the service's tables in this database, and there is no upgrade before the first release: run `DROP SCHEMA cdc_export CASCADE; DROP TABLE IF EXISTS {tables} CASCADE` and start again; each consumer needs a full export then"
    )]
    OtherBuild {
        /// The tables that the service created outside of its own schema, with their schemas.
        tables: String,
    },
    #[error("can't migrate the database")]
    Migrate(#[from] MigrateError),
    #[error("Postgres refused a statement of the start")]
    Sql(#[from] sqlx::Error),
}

/// The time within which a pool must provide a connection. A call of the API has 2 seconds.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The connection options of a database.
#[derive(Clone, Debug)]
pub struct Database {
    options: PgConnectOptions,
    /// The setting that contains its address.
    setting: &'static str,
    /// A remark on the user or database that was assumed because the setting names none. Empty if the setting names
    /// both.
    assumed: &'static str,
    /// The time within which a first connection must be there.
    connect_timeout: Duration,
    /// True if its sessions see a preview of the service's schema.
    is_preview: bool,
    /// The pool for short statements, which all copies of this value share.
    pool: Arc<OnceLock<PgPool>>,
    /// The number of its connections at most.
    connections: u32,
}

impl From<PgConnectOptions> for Database {
    fn from(options: PgConnectOptions) -> Database {
        // Poolers refuse this startup parameter. Since version 12, Postgres prints floats exactly without it.
        let options = options.extra_float_digits(None);
        let options = options.application_name(&session_name::of_process()).disable_statement_logging();
        Database {
            options,
            setting: "DATABASE_URL",
            assumed: "",
            connect_timeout: CONNECT_TIMEOUT,
            is_preview: false,
            pool: Arc::default(),
            connections: 1,
        }
    }
}

/// Formats the database for error messages: the setting and the address, never the password.
impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Database { options, setting, .. } = self;
        let user = options.get_username();
        write!(f, "{setting}: {user}@")?;
        match options.get_socket() {
            Some(folder) => write!(f, "{}", folder.display())?,
            None if options.get_host().contains(':') => write!(f, "[{}]", options.get_host())?,
            None => write!(f, "{}", options.get_host())?,
        }
        // Without a database name, the default is the user's name, as in libpq.
        write!(f, ":{}/{}{}", options.get_port(), options.get_database().unwrap_or(user), self.assumed)
    }
}

impl Database {
    /// Returns the database of the private server whose socket is in this folder.
    pub fn private(socket_folder: &Path) -> Database {
        let options = PgConnectOptions::new_without_pgpass()
            .socket(socket_folder)
            .port(private_postgres::PORT)
            .username(private_postgres::ROLE)
            .database(private_postgres::DATABASE)
            .ssl_mode(PgSslMode::Disable);
        Database { setting: "DATA_DIR", ..options.into() }
    }

    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Returns the same database with a pool of its own, of at most `connections`.
    pub fn with_pool_of(&self, connections: u32) -> Database {
        Database { connections, pool: Arc::default(), ..self.clone() }
    }

    /// Returns the pool for short statements, which opens connections on demand. It has at most one, unless
    /// [`Database::with_pool_of`] set another number.
    ///
    /// Acquiring one waits at most 2 seconds, because a call of the API needs an answer, and all other tasks retry. A
    /// statement that waits for a lock is cancelled after 3 seconds, so that it doesn't block others in turn.
    pub fn pool(&self) -> PgPool {
        self.pool.get_or_init(|| self.pool_with(self.connections, "3s", "10s")).clone()
    }

    /// Creates a pool whose statements end before their callers give up after `timeout`. A statement that continued
    /// would keep its connection busy, next to the new one that the pool opens.
    pub fn pool_for_callers(&self, connections: u32, timeout: Duration) -> PgPool {
        // A second preview would wait for the transaction of the first one.
        if self.is_preview {
            return self.pool();
        }
        let timeout = format!("{}ms", timeout.mul_f64(0.8).as_millis());
        self.pool_with(connections, &timeout, &timeout)
    }

    fn pool_with(&self, connections: u32, lock_timeout: &str, statement_timeout: &str) -> PgPool {
        let set = format!(
            "set lock_timeout = '{lock_timeout}'; set statement_timeout = '{statement_timeout}';
             set idle_in_transaction_session_timeout = '10s'"
        );
        let (is_preview, throttle) = (self.is_preview, Arc::new(LogThrottle::default()));
        PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(failpoint::time("service.call", ACQUIRE_TIMEOUT))
            .test_before_acquire(false)
            .idle_timeout(IDLE_TIMEOUT)
            .before_acquire(|conn, _| Box::pin(async { require_usable(conn).await.map(|()| true) }))
            // Precedes the pool's own ping, which has no timeout and logs a failure. A preview is one transaction.
            .after_release(move |conn, _| Box::pin(async move { Ok(is_preview || has_no_transaction(conn).await) }))
            .after_connect(move |conn, _| {
                let (set, throttle) = (set.clone(), Arc::clone(&throttle));
                Box::pin(async move {
                    // The driver tries again until the time limit, and tells no caller the reason.
                    pg_session::set_up(conn, &set).await.inspect_err(|error| log_refused(&throttle, error))?;
                    if is_preview { preview::begin(conn).await } else { Ok(()) }
                })
            })
            .connect_lazy_with(self.options.clone())
    }
}

fn log_refused(throttle: &LogThrottle, error: &sqlx::Error) {
    let error = chain(error);
    if let Some(times) = throttle.should_log(error.clone()) {
        tracing::warn!(event = "session_refused", error, times);
    }
}

/// Connects without any session settings, because a pooler may share the session with other clients.
///
/// Waits for a server that is starting or recovering from a crash: after a power cut, service and server start
/// together.
async fn connect(database: &Database) -> Result<PgConnection, Error> {
    let (begun, throttle) = (Instant::now(), LogThrottle::default());
    loop {
        let connecting = PgConnection::connect_with(database.options());
        let error = match tokio::time::timeout(database.connect_timeout, connecting).await {
            Ok(Ok(conn)) => return Ok(conn),
            Ok(Err(error)) => error,
            Err(_) => return Err(Error::Unreachable(no_answer(database.connect_timeout))),
        };
        let starting = SqlFailure::of(&error) == SqlFailure::Starting;
        if !starting || begun.elapsed() > START_TIMEOUT {
            return Err(Error::Unreachable(unreachable(&error)));
        }
        if let Some(times) = throttle.should_log("starting".to_owned()) {
            tracing::info!(target: wait::TARGET, event = "postgres_starting", times, "waiting for Postgres to accept connections");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Checks that the server allows this number of connections. Other clients may hold them now: old connections of a
/// restarted service may not be closed yet.
///
/// # Errors
/// If the server, the role or the database allows fewer connections.
pub async fn require_connections(database: &Database, needed: u32) -> Result<(), Error> {
    let allowed: i32 = sqlx::query_scalar(
        "-- postgres.connections
         select case when r.rolsuper then s.total
                     else least(s.total - s.reserved, nullif(r.rolconnlimit, -1), nullif(d.datconnlimit, -1)) end
         from (select current_setting('max_connections')::int as total,
                 current_setting('superuser_reserved_connections')::int
                   + coalesce(current_setting('reserved_connections', true)::int, 0) as reserved) s,
           pg_roles r, pg_database d
         where r.rolname = current_user and d.datname = current_database()",
    )
    .fetch_one(&database.pool())
    .await?;
    if i64::from(needed) > i64::from(allowed) {
        return Err(Error::TooFewConnections { needed, allowed });
    }
    Ok(())
}
