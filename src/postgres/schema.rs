//! Migrates the service's own schema at each start. Refuses a database in which tables of other owners have the names
//! of the service's tables.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqlSafeStr};

use crate::catalog::Catalog;
use crate::postgres::needed::require_needed;
use crate::postgres::preview::begin;
use crate::postgres::reach::unreachable;
use crate::postgres::search_path::{SearchPath, TablesSchema};
use crate::postgres::{Database, Error, OLDEST, connect, pooler};
use pg_session::failure::SqlFailure;
use pg_session::wait;

static OF_SERVICE: Migrator = sqlx_macros::migrate!("./migrations");

/// The migrations, embedded into the binary: the tables of change capture, then those of the service.
static MIGRATIONS: LazyLock<Vec<Migration>> = LazyLock::new(|| {
    let sql = cdc_capture::SCHEMA.into_sql_str();
    let capture = Migration::new(1, "change capture".into(), MigrationType::Simple, sql, false);
    [capture].into_iter().chain(OF_SERVICE.iter().cloned()).collect()
});

/// The maximum number of attempts of a migration while its tables are locked, with a pause of one second in between.
const MIGRATION_TRIES: u32 = 120;

const LOCKED: &str = "the service's tables are locked, and the migration tries again for some minutes: let the sessions end their \
    transactions, or end them: select * from pg_locks where relation::regclass::text like 'cdc_export.%'";

/// Checks the server, and that the schema has this version or a later one. Changes nothing.
pub async fn require_migrated(database: &Database) -> Result<(), Error> {
    let (mut conn, path) = open(database).await?;
    let rights = Rights::read(&mut conn, &path).await?;
    if !rights.has_migrations {
        return Err(Error::NotMigrated);
    }
    rights.require_use(RequiredGrants::Serve)?;
    let is_complete = has_all_migrations(&mut conn).await?;
    refuse_foreign_tables(&mut conn, &path).await?;
    let schema = path.tables_schema(&mut conn).await?;
    if !is_complete || !schema.has_view(&mut conn).await? {
        return Err(Error::Incomplete);
    }
    Ok(conn.close().await?)
}

/// Returns a database whose sessions see a preview of the service's schema. Statements about tables then work without a
/// migration.
///
/// It has one pool, with one connection.
///
/// # Errors
/// If the role may not create a schema.
pub async fn preview_of(database: &Database) -> Result<Database, Error> {
    let (mut conn, _) = open(database).await?;
    begin(&mut conn).await.map_err(|cause| match SqlFailure::of(&cause) {
        SqlFailure::Denied => Error::NotMigrated,
        _ => Error::Sql(cause),
    })?;
    conn.close().await?;
    Ok(Database { is_preview: true, ..database.with_pool_of(1) })
}

/// Connects and checks the server. Returns the connection and the role's own search_path.
async fn open(database: &Database) -> Result<(PgConnection, SearchPath), Error> {
    let mut conn = connect(database).await?;
    // This check must run before any setting or lock.
    pooler::require_sessions(&mut conn, database).await?;
    let path = SearchPath::read_of_role(&mut conn).await?;
    pg_session::set_up(&mut conn, "").await.map_err(|error| Error::Unreachable(unreachable(&error)))?;
    let (number, version): (i32, String) = sqlx::query_as(
        "-- postgres.version
         select current_setting('server_version_num')::int, current_setting('server_version')",
    )
    .fetch_one(&mut conn)
    .await?;
    if number < OLDEST {
        return Err(Error::TooOld(version));
    }
    require_needed(&mut conn).await?;
    Ok((conn, path))
}

/// The purpose for which a role uses the service's schema. It decides which grants the role needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiredGrants {
    Serve,
    /// The role captures the changes of its own table.
    Track,
}

/// Checks the server and migrates the schema. Several replicas may call this at once: the first one migrates, and the
/// others wait for it.
///
/// The first migration creates the demo table `users` if the catalog has a dataset for it and no table has that name.
///
/// # Errors
/// If the database can't be reached or used, is behind a pooler in transaction mode, or has `exports` or `watermarks`
/// of another owner.
pub async fn migrate(database: &Database, catalog: &Catalog, required: RequiredGrants) -> Result<(), Error> {
    let (mut conn, path) = open(database).await?;
    // The session may wait long for the migration of another replica.
    sqlx::query("-- postgres.migrate.lift_timeout\n set lock_timeout = 0").execute(&mut conn).await?;
    lock(&mut conn).await?;
    let rights = Rights::read(&mut conn, &path).await?;
    let is_complete = if rights.has_migrations {
        rights.require_use(required)?;
        has_all_migrations(&mut conn).await?
    } else {
        rights.require_create()?;
        false
    };
    refuse_foreign_tables(&mut conn, &path).await?;
    // The migrator would need the right to create its table, even if the table exists. If another role has migrated,
    // the service's role needs no such right.
    let schema = path.tables_schema(&mut conn).await?;
    if is_complete && schema.has_view(&mut conn).await? {
        return Ok(conn.close().await?);
    }
    rights.require_create()?;
    if path.is_empty() {
        return Err(Error::NoSchema);
    }
    if !rights.has_schema {
        let created =
            sqlx::query("-- postgres.migrate.create_schema\n create schema cdc_export").execute(&mut conn).await;
        created?;
    }
    // `create index` waits for the table's writers, and later writers wait for it. So it waits for 2 seconds at most,
    // and is retried.
    sqlx::query("-- postgres.migrate.lock_timeout\n set lock_timeout = '2s'").execute(&mut conn).await?;
    let makes_users = has_demo_dataset(catalog, &path) && path.locate(&mut conn, "users").await?.is_none();
    let mut migrator = Migrator::with_migrations(migrations(&schema, makes_users));
    migrator.set_locking(false);
    migrator.dangerous_set_table_name("cdc_export.migrations");
    wait::named(LOCKED, run(&migrator, &schema, &mut conn)).await?;
    Ok(conn.close().await?)
}

/// Runs the migrations, and tries again while tables are locked.
async fn run(migrator: &Migrator, schema: &TablesSchema, conn: &mut PgConnection) -> Result<(), MigrateError> {
    for left in (0..MIGRATION_TRIES).rev() {
        let migrated = match migrator.run(&mut *conn).await {
            Ok(()) => schema.renew_view(conn).await.map_err(MigrateError::Execute),
            Err(error) => Err(error),
        };
        match migrated {
            Err(error) if left > 0 && is_busy(&error) => tokio::time::sleep(Duration::from_secs(1)).await,
            done => return done,
        }
    }
    Ok(())
}

/// Waits until no other process migrates.
///
/// The lock belongs to the session, because the migrations commit one by one. The connection's end releases it, also if
/// this future is dropped. Every role that may connect can hold the lock and delay a start, so the log names the
/// holder.
async fn lock(conn: &mut PgConnection) -> Result<(), Error> {
    let mut logged_at: Option<Instant> = None;
    loop {
        let (is_ours, holder): (bool, Option<String>) = sqlx::query_as(
            "-- postgres.migrate.lock
             select pg_try_advisory_lock(key), (
               select string_agg(format('process %s of role %s', a.pid, a.usename), ', ')
               from pg_locks l join pg_stat_activity a on a.pid = l.pid
               where l.locktype = 'advisory' and l.granted and a.datname = current_database() and l.objsubid = 1
                 and (l.classid::bigint << 32 | l.objid::bigint) = key)
             from hashtextextended('cdc_export.migrate', 0) as key",
        )
        .fetch_one(&mut *conn)
        .await?;
        if is_ours {
            return Ok(());
        }
        if logged_at.is_none_or(|logged_at| logged_at.elapsed() > Duration::from_secs(10)) {
            tracing::warn!(
                target: wait::TARGET,
                event = "migration_waits",
                holder,
                "another session holds the lock of the migrations: let it finish, or end it"
            );
            logged_at = Some(Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn has_demo_dataset(catalog: &Catalog, path: &SearchPath) -> bool {
    let is_in_first_schema = |schema: &Option<String>| schema.as_deref().is_none_or(|schema| schema == path.first());
    catalog.iter().any(|dataset| dataset.table.name == "users" && is_in_first_schema(&dataset.table.schema))
}

/// Returns the migrations with their placeholders replaced. The heads of the files list the placeholders.
fn migrations(schema: &TablesSchema, makes_users: bool) -> Vec<Migration> {
    let written = |migration: &Migration| {
        let text = migration.sql.as_str().replace("{makes_users}", &makes_users.to_string());
        let sql = AssertSqlSafe(schema.written_in(&text)).into_sql_str();
        // The checksum remains that of the file's text.
        Migration { sql, ..migration.clone() }
    };
    MIGRATIONS.iter().map(written).collect()
}

fn is_busy(error: &MigrateError) -> bool {
    let (MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _)) = error else { return false };
    SqlFailure::of(cause) == SqlFailure::LockTimeout
}

/// Returns true if the database has all migrations, and false if it has the first of them only.
///
/// # Errors
/// [`Error::OtherBuild`] if it has a migration that this build doesn't have, or has with another text.
async fn has_all_migrations(conn: &mut PgConnection) -> Result<bool, Error> {
    let recorded: Vec<(i64, Vec<u8>)> = sqlx::query_as(
        "-- postgres.migrate.recorded
         select version, checksum from cdc_export.migrations where success",
    )
    .fetch_all(&mut *conn)
    .await?;
    let known: HashMap<_, _> = MIGRATIONS.iter().map(|migration| (migration.version, &*migration.checksum)).collect();
    if recorded.iter().any(|(version, checksum)| known.get(version) != Some(&&**checksum)) {
        let tables: String = sqlx::query_scalar(
            "-- postgres.migrate.made_before
             select string_agg(format('%I.%I', schema_name, table_name), ', ' order by schema_name, table_name)
             from cdc_export.owned",
        )
        .fetch_one(conn)
        .await?;
        return Err(Error::OtherBuild { tables });
    }
    Ok(recorded.len() == known.len())
}

/// The existing parts of the schema, and the privileges of the role. They are read first, so that the schema is never
/// created in part only.
#[derive(sqlx_macros::FromRow)]
struct Rights {
    role: String,
    has_schema: bool,
    has_migrations: bool,
    /// The owner of the tables, unless our role is a member of it.
    owner: Option<String>,
    may_read: bool,
    to_use: String,
    to_track: String,
    /// The missing grants for a migration. Empty if none is missing.
    to_create: String,
    /// The owner of the database, unless our role is a member of it.
    database_owner: Option<String>,
}

impl Rights {
    async fn read(conn: &mut PgConnection, path: &SearchPath) -> Result<Rights, sqlx::Error> {
        sqlx::query_as(include_str!("schema/rights.sql")).bind(path.first()).fetch_one(conn).await
    }

    fn require_use(&self, required: RequiredGrants) -> Result<(), Error> {
        if self.may_read {
            return Ok(());
        }
        let grants = match required {
            RequiredGrants::Serve => &self.to_use,
            RequiredGrants::Track => &self.to_track,
        };
        Err(self.denied("use the service's tables", format!("run {grants}")))
    }

    fn require_create(&self) -> Result<(), Error> {
        if let Some(owner) = &self.owner {
            return Err(self.denied("migrate the service's tables", format!("run `cdc-export migrate` as `{owner}`")));
        }
        if self.to_create.is_empty() {
            return Ok(());
        }
        let as_owner = self
            .database_owner
            .as_ref()
            .map(|owner| format!("run `cdc-export migrate` as the database's owner, `{owner}`, or "));
        let remedy = format!("{}run {}", as_owner.unwrap_or_default(), self.to_create);
        Err(self.denied("create the service's tables", remedy))
    }

    fn denied(&self, action: &'static str, remedy: String) -> Error {
        Error::Denied { role: self.role.clone(), action, remedy }
    }
}

/// Checks that the search_path finds the service's own `exports` and `watermarks`. Runs also if there is nothing to
/// migrate, because the search_path may have changed.
async fn refuse_foreign_tables(conn: &mut PgConnection, path: &SearchPath) -> Result<(), Error> {
    let known: bool = sqlx::query_scalar(
        "-- postgres.migrate.known
         select to_regclass('cdc_export.owned') is not null",
    )
    .fetch_one(&mut *conn)
    .await?;
    let owned: Vec<(String, String)> = match known {
        true => {
            let owned = sqlx::query_as(
                "-- postgres.migrate.owned
                 select schema_name, table_name from cdc_export.owned where table_name in ('exports', 'watermarks') order by 1, 2",
            );
            owned.fetch_all(&mut *conn).await?
        }
        false => Vec::new(),
    };
    for table in ["exports", "watermarks"] {
        if let Some(schema) = path.locate(conn, table).await?
            && !owned.contains(&(schema.clone(), table.to_owned()))
        {
            return Err(Error::Foreign(format!("{schema}.{table}")));
        }
    }
    for (schema, table) in owned {
        if path.locate(conn, &table).await?.is_none() {
            return Err(Error::Hidden(format!("{schema}.{table}")));
        }
    }
    Ok(())
}
