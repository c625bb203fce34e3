//! The database under the service: how it is reached, that it is new enough, and that its schema is ours.
//!
//! Knows tables only to make them; what is done with them is the business of `store` and `source`.

pub mod demo;
pub mod embedded;

use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};

/// The oldest Postgres that has what the service relies on (`pg_current_snapshot`, xid8).
const OLDEST: i32 = 130_000;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Why the database can't be used. Each is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer, or a refusal.
    #[error("can't connect to Postgres")]
    Unreachable(#[source] sqlx::Error),
    /// Too old a server.
    #[error("Postgres {0} is too old: 13 or later is needed")]
    TooOld(String),
    /// A standby: its snapshots hide transactions that are in progress on its primary, and nothing can be written to it.
    #[error("this Postgres is a standby: give the service its primary")]
    Standby,
    /// A table of ours would hide somebody's, or the other way round.
    #[error(
        "the database has a table `{0}` that this service did not make: give the service a database or a search_path of its own"
    )]
    Foreign(String),
    /// The role may not make what is needed.
    #[error("the database role may not create the service's tables")]
    Denied(#[source] sqlx::Error),
    /// A migration failed.
    #[error("can't migrate the database")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// Anything else that Postgres reports.
    #[error("Postgres refused a statement of the start")]
    Sql(#[source] sqlx::Error),
}

/// How to reach a database.
#[derive(Clone, Debug)]
pub struct Database(PgConnectOptions);

impl From<PgConnectOptions> for Database {
    fn from(options: PgConnectOptions) -> Database {
        // Whatever the server's or the role's defaults are: the statements are written for these.
        let options = options
            .options([("default_transaction_isolation", "read committed"), ("default_transaction_read_only", "off")]);
        Database(options.application_name("cdc-export").disable_statement_logging())
    }
}

impl FromStr for Database {
    type Err = NotAUrl;

    /// Reads a `postgres://` URL.
    fn from_str(url: &str) -> Result<Database, NotAUrl> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(NotAUrl);
        }
        url.parse().map(|options: PgConnectOptions| options.into()).map_err(|_| NotAUrl)
    }
}

/// A text that is no URL of a database. Doesn't quote it: it may hold a password.
#[derive(Debug, thiserror::Error)]
#[error("not a postgres:// URL")]
pub struct NotAUrl;

impl Database {
    /// What each connection is made with.
    pub fn options(&self) -> &PgConnectOptions {
        &self.0
    }

    /// A pool of at most `connections` for short statements, none of them open yet. Waits 2 seconds at most for a free one: an
    /// API caller wants an answer, and who isn't one tries again anyway. A statement that somebody's lock holds up ends by
    /// itself, lest it holds up others in turn.
    pub fn pool(&self, connections: u32) -> PgPool {
        let patience =
            [("lock_timeout", "3s"), ("statement_timeout", "10s"), ("idle_in_transaction_session_timeout", "10s")];
        PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_secs(2))
            .connect_lazy_with(self.0.clone().options(patience))
    }
}

/// Checks the server and brings the schema up to date. Safe at every start and from several replicas at once: the first one
/// migrates, the others wait for it.
///
/// # Errors
/// If the database can't be reached or used, or holds a foreign `exports` or `watermarks`.
pub async fn migrate(database: &Database) -> Result<(), Error> {
    let mut conn = PgConnection::connect_with(database.options()).await.map_err(Error::Unreachable)?;
    let (number, version, standby): (i32, String, bool) = sqlx::query_as(
        "-- postgres.version
         select current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery()",
    )
    .fetch_one(&mut conn)
    .await
    .map_err(Error::Sql)?;
    if number < OLDEST {
        return Err(Error::TooOld(version));
    }
    if standby {
        return Err(Error::Standby);
    }

    // Another replica's migration may take long, and so may ours.
    sqlx::raw_sql(
        "-- postgres.migrate.patience
         set statement_timeout = 0; set lock_timeout = 0; set idle_in_transaction_session_timeout = 0",
    )
    .execute(&mut conn)
    .await
    .map_err(Error::Sql)?;
    // A session's lock: the migrations commit one by one under it. It goes with the connection, also if this future does.
    sqlx::query(
        "-- postgres.migrate.lock
         select pg_advisory_lock(hashtextextended('cdc_export.migrate', 0))",
    )
    .execute(&mut conn)
    .await
    .map_err(Error::Sql)?;
    refuse_foreign_tables(&mut conn).await?;

    let schema: bool = sqlx::query_scalar(
        "-- postgres.migrate.schema
         select to_regnamespace('cdc_export') is not null",
    )
    .fetch_one(&mut conn)
    .await
    .map_err(Error::Sql)?;
    if !schema {
        // Not `if not exists`, which wants the right to create one even where it exists.
        let created =
            sqlx::query("-- postgres.migrate.create_schema\n create schema cdc_export").execute(&mut conn).await;
        created.map_err(|e| denied_or_broken(e.into()))?;
    }
    // An older binary may start beside a newer one: it ignores migrations that it doesn't know.
    let mut migrator = Migrator::with_migrations(MIGRATIONS.iter().cloned().collect());
    migrator.set_locking(false).set_ignore_missing(true);
    migrator.dangerous_set_table_name("cdc_export.migrations");
    migrator.run(&mut conn).await.map_err(denied_or_broken)?;
    conn.close().await.map_err(Error::Sql)
}

fn denied_or_broken(error: sqlx::migrate::MigrateError) -> Error {
    use sqlx::migrate::MigrateError;
    match error {
        MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _)
            if cause.as_database_error().is_some_and(|e| e.code().as_deref() == Some("42501")) =>
        {
            Error::Denied(cause)
        }
        other => Error::Migrate(other),
    }
}

/// `exports` and `watermarks` must be ours wherever the search_path finds them. Asked before every migration, and again when
/// there is nothing to migrate: a search_path may have changed since.
async fn refuse_foreign_tables(conn: &mut PgConnection) -> Result<(), Error> {
    let known: bool = sqlx::query_scalar(
        "-- postgres.migrate.known
         select to_regclass('cdc_export.owned') is not null",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(Error::Sql)?;
    let found: Vec<(String, String)> = sqlx::query_as(
        "-- postgres.migrate.found
         select n.nspname::text, c.relname::text
         from unnest(array['exports', 'watermarks']) as wanted (name)
         join pg_class c on c.oid = to_regclass(wanted.name)
         join pg_namespace n on n.oid = c.relnamespace",
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(Error::Sql)?;
    for (schema, table) in found {
        let ours = known
            && sqlx::query_scalar(
                "-- postgres.migrate.owned
                 select exists (select from cdc_export.owned where schema_name = $1 and table_name = $2)",
            )
            .bind(&schema)
            .bind(&table)
            .fetch_one(&mut *conn)
            .await
            .map_err(Error::Sql)?;
        if !ours {
            return Err(Error::Foreign(format!("{schema}.{table}")));
        }
    }
    Ok(())
}
