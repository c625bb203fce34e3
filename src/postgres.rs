//! The database under the service: pools of connections to it, checks of the server, and the migration of our schema.
//!
//! Knows tables only to make them; `store` and `source` read and write them.

pub mod download;
mod migrations;
mod pooler;
mod preview;
mod reach;
mod schema;
mod search_path;
mod url;

use std::fmt;
use std::time::{Duration, Instant};

use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};

pub use schema::{Purpose, migrate, preview_of, require_migrated};
pub use url::{BadUrl, NamedDatabase};

use crate::connection;
use crate::connection::failure::SqlFailure;
use crate::failpoint;
use crate::postgres::reach::{CONNECT_TIMEOUT, no_answer, unreachable};
use crate::telemetry::log_throttle::LogThrottle;
use private_postgres::Endpoint;

/// The oldest Postgres that has what the service relies on (`pg_current_snapshot`, xid8).
const OLDEST: i32 = 130_000;

/// How long a start waits for a server that is starting itself.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Why the database can't be used. Each is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, and what to do about it.
    #[error("{0}")]
    Unreachable(String),
    /// Too old a server.
    #[error("Postgres {0} is too old: 13 or later is needed")]
    TooOld(String),
    /// A standby: its snapshots hide transactions that are in progress on its primary, and nothing can be written to
    /// it.
    #[error("this Postgres is a standby: give the service its primary")]
    Standby,
    /// A table of ours would hide one that somebody else made, or that one would hide ours.
    #[error(
        "the database has a table `{0}` that this service did not make: give the service a database or a search_path of its own"
    )]
    Foreign(String),
    /// The role lacks rights.
    #[error("the database role `{role}` may not {deed}: {remedy}")]
    Denied {
        /// The role.
        role: String,
        /// What the role may not do.
        deed: &'static str,
        /// The grant that is missing, or the role that has it.
        remedy: String,
    },
    /// The tables are there, and the connection doesn't find them.
    #[error(
        "the service's table `{0}` can't be found: the search_path must lead to its schema, and the role have USAGE on that"
    )]
    Hidden(String),
    /// The settings need more connections than there can be.
    #[error(
        "this needs up to {needed} connections, and Postgres gives the role {most} at most: lower WORKERS, READERS or API_CONNECTIONS, or raise the server's max_connections or the limit of the role or database"
    )]
    TooFewConnections {
        /// What the settings amount to.
        needed: u32,
        /// What the server, the role and the database allow.
        most: i32,
    },
    /// A pooler lends its sessions for a transaction, or a statement.
    #[error(
        "DATABASE_URL goes through a pooler in transaction mode, and the service needs sessions of its own (LISTEN, prepared statements, locks): connect to Postgres directly, or to a pool in session mode"
    )]
    Pooled,
    /// A second connection gets no session.
    #[error(
        "a second connection to Postgres gets no answer: where a pooler is in between, its pool is too small for the service"
    )]
    OneSession,
    /// Nobody has migrated the database.
    #[error("there is no cdc-export in this database yet: run `cdc-export migrate`")]
    NotMigrated,
    /// The schema is an earlier version's.
    #[error("the service's tables in this database are of an earlier version: run `cdc-export migrate`")]
    Outdated,
    /// The schema is from before the first release.
    #[error(
        "the service's tables in this database are from before version 0.1.0, from which there is no upgrade: run `DROP SCHEMA cdc_export CASCADE; DROP TABLE IF EXISTS {tables} CASCADE` and start again; each consumer needs a full export then"
    )]
    Unreleased {
        /// The tables outside of our schema that the service made, with their schemas.
        tables: String,
    },
    /// A migration failed.
    #[error("can't migrate the database")]
    Migrate(#[from] MigrateError),
    /// Anything else that Postgres reports.
    #[error("Postgres refused a statement of the start")]
    Sql(#[from] sqlx::Error),
}

/// How long a pool looks for a connection. A caller has 2 seconds.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a pool waits for a connection's ping, when the connection is acquired and when it is released. A caller has
/// 2 seconds, of which some must be left for a new connection; and for a released one the pool itself would wait for
/// ever.
const PING_TIMEOUT: Duration = Duration::from_millis(500);

/// Pings a connection of a pool. On an error the pool drops the connection without the usual goodbye, which could hang.
async fn require_answer(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match tokio::time::timeout(PING_TIMEOUT, conn.ping()).await {
        Ok(answer) => answer.map(|()| true),
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

/// How to reach a database.
#[derive(Clone, Debug)]
pub struct Database {
    options: PgConnectOptions,
    /// The setting that says where it is.
    setting: &'static str,
    /// What was taken for a user or a database that the setting doesn't name; empty where it names both.
    assumed: &'static str,
    /// Whether its sessions find our schema in the making, which nobody has made.
    is_preview: bool,
}

impl From<PgConnectOptions> for Database {
    fn from(options: PgConnectOptions) -> Database {
        // Poolers refuse this parameter at the start of a connection. Since version 12 Postgres prints floats exactly
        // without it.
        let options = options.extra_float_digits(None);
        let options = options.application_name("cdc-export").disable_statement_logging();
        Database { options, setting: "DATABASE_URL", assumed: "", is_preview: false }
    }
}

impl From<&Endpoint> for Database {
    fn from(endpoint: &Endpoint) -> Database {
        let options = PgConnectOptions::new_without_pgpass()
            .socket(&endpoint.socket_folder)
            .port(private_postgres::PORT)
            .username(private_postgres::ROLE)
            .password(&endpoint.password)
            .database(private_postgres::DATABASE)
            .ssl_mode(PgSslMode::Disable);
        Database { setting: "DATA_DIR", ..options.into() }
    }
}

/// As an error names it: the setting, and the address that it says, never the password.
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
        // As libpq has it: where no database is named, it has the user's name.
        write!(f, ":{}/{}{}", options.get_port(), options.get_database().unwrap_or(user), self.assumed)
    }
}

impl Database {
    /// The options of each connection.
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// A pool of at most `connections` for short statements, none of them open yet. Acquiring one waits 2 seconds at
    /// most: a caller of the API wants an answer, and all others try again anyway. A statement that waits for a lock is
    /// ended after 3 seconds, so that it doesn't hold up others in turn.
    pub fn pool(&self, connections: u32) -> PgPool {
        self.pool_with(connections, "3s", "10s")
    }

    /// A pool whose statements end before their caller gives up after `timeout`. A statement that went on would keep
    /// its connection busy, beside the new one that the pool opens instead.
    pub fn pool_for_callers(&self, connections: u32, timeout: Duration) -> PgPool {
        let timeout = format!("{}ms", timeout.mul_f64(0.8).as_millis());
        self.pool_with(connections, &timeout, &timeout)
    }

    fn pool_with(&self, connections: u32, lock_timeout: &str, statement_timeout: &str) -> PgPool {
        let set = format!(
            "-- postgres.session
             {}
             set lock_timeout = '{lock_timeout}'; set statement_timeout = '{statement_timeout}';
             set idle_in_transaction_session_timeout = '10s'",
            connection::SET_UP
        );
        let is_preview = self.is_preview;
        PgPoolOptions::new()
            // A second preview would wait for the first one's transaction.
            .max_connections(if is_preview { 1 } else { connections })
            .acquire_timeout(failpoint::time("service.call", ACQUIRE_TIMEOUT))
            .test_before_acquire(false)
            .before_acquire(|conn, _| Box::pin(require_answer(conn)))
            .after_release(|conn, _| Box::pin(require_answer(conn)))
            .after_connect(move |conn, _| {
                let set = sqlx::raw_sql(AssertSqlSafe(set.clone()));
                Box::pin(async move {
                    set.execute(&mut *conn).await?;
                    if is_preview { preview::begin(conn).await } else { Ok(()) }
                })
            })
            .connect_lazy_with(self.options.clone())
    }
}

/// Connects, and sets nothing: a pooler may share the session with other clients. Waits for a server that is starting
/// or recovering from a crash: after a power cut, service and server start together.
async fn connect(database: &Database) -> Result<PgConnection, Error> {
    let (begun, throttle) = (Instant::now(), LogThrottle::default());
    loop {
        let connecting = PgConnection::connect_with(database.options());
        let error = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(conn)) => return Ok(conn),
            Ok(Err(error)) => error,
            Err(_) => return Err(Error::Unreachable(no_answer())),
        };
        let starting = SqlFailure::of(&error) == SqlFailure::Starting;
        if !starting || begun.elapsed() > START_TIMEOUT {
            return Err(Error::Unreachable(unreachable(&error)));
        }
        if let Some(times) = throttle.should_log("starting".to_owned()) {
            tracing::info!(event = "postgres_starting", times, "waiting for Postgres to accept connections");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Whether there is a key. Reads only, and works before the migration: without our schema there is none.
///
/// # Errors
/// If the database can't be reached or read.
pub async fn has_keys(database: &Database) -> Result<bool, Error> {
    let mut conn = connect(database).await?;
    let path = format!("-- postgres.keys.path\n begin; set local search_path = {}", connection::SEARCH_PATH);
    sqlx::raw_sql(AssertSqlSafe(path)).execute(&mut conn).await?;
    let has_place: bool = sqlx::query_scalar(
        "-- postgres.keys.place
         select exists (
           select from pg_class c join pg_namespace n on n.oid = c.relnamespace
           where n.nspname = 'cdc_export' and c.relname = 'keys')",
    )
    .fetch_one(&mut conn)
    .await?;
    let has_keys = has_place
        && sqlx::query_scalar("-- postgres.keys.any\n select exists (select from cdc_export.keys)")
            .fetch_one(&mut conn)
            .await?;
    conn.close().await?;
    Ok(has_keys)
}

/// Checks that the server allows so many connections. If others hold them now, it only warns: a service that is
/// restarted may find its old connections not yet closed.
///
/// # Errors
/// If the server, the role or the database never allows so many.
pub async fn require_connections(database: &Database, needed: u32) -> Result<(), Error> {
    let mut conn = connect(database).await?;
    connection::set_up(&mut conn).await?;
    let (most, free): (i32, i64) = sqlx::query_as(
        "-- postgres.connections
         select case when r.rolsuper then s.total
                     else least(s.total - s.reserved, nullif(r.rolconnlimit, -1), nullif(d.datconnlimit, -1)) end,
           -- Of each database, since a role doesn't see what others' sessions are.
           s.total - s.reserved - (select coalesce(sum(numbackends), 0) from pg_stat_database where datid > 0)::bigint
         from (select current_setting('max_connections')::int as total,
                 current_setting('superuser_reserved_connections')::int
                   + coalesce(current_setting('reserved_connections', true)::int, 0) as reserved) s,
           pg_roles r, pg_database d
         where r.rolname = current_user and d.datname = current_database()",
    )
    .fetch_one(&mut conn)
    .await?;
    conn.close().await?;
    if i64::from(needed) > i64::from(most) {
        return Err(Error::TooFewConnections { needed, most });
    }
    if i64::from(needed) > free {
        tracing::warn!(
            event = "connections_scarce",
            needed,
            free,
            "others have connections that this may come to need"
        );
    }
    Ok(())
}
