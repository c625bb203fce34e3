//! The demo table `users`: realistic users of one month for a first export, and a soft delete, so that a delta can
//! contain a deletion.
//!
//! A migration creates the table unless the database already has a `users`. [`Dataset::users`] configures its export.
//!
//! Must not know exports, jobs or consumers. Must not touch a `users` table of another owner: the service's own table
//! is recorded in `cdc_export.owned`.
//!
//! [`Dataset::users`]: cdc_dataset::Dataset::users

pub mod people;

use std::fmt::Write;
use std::ops::RangeInclusive;
use std::time::Instant;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Transaction};

use crate::demo::people::{Person, person};
use crate::store::{self, Store};
use pg_session::wait;

/// The number of bytes after which rows are sent.
const CHUNK_BYTES: usize = 256 * 1024;

/// A row of the demo table. Times are RFC 3339 with microseconds, or `None` if they are infinite.
#[derive(Debug, sqlx_macros::FromRow)]
pub struct User {
    pub id: i64,
    pub name: String,
    pub email: String,
    pub created_at: Option<String>,
    pub updated_at: Option<String>,
    pub is_deleted: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`users` is not the demo table: nothing was added")]
    NotOurs,
    #[error("the state of the demo table could not be read")]
    Inspect(#[source] sqlx::Error),
    #[error("the demo table could not be filled with {rows} users")]
    Fill { rows: u64, source: sqlx::Error },
}

/// Fills an empty demo table with `rows` users, and returns the number of inserted users. Returns 0 if the table was
/// not created by the service or is not empty.
///
/// All users are inserted in one transaction. If several replicas start at once, one fills the table and the others
/// wait, so that none exports an empty table.
///
/// # Errors
/// If Postgres or the connection fails. No user was inserted then, unless the answer to COMMIT was lost. In both cases
/// another call is safe.
pub async fn seed(pool: &PgPool, rows: u64) -> Result<u64, Error> {
    if rows == 0 {
        return Ok(0);
    }
    let begun = Instant::now();
    // A session's transactions are read committed: the check under the lock needs a snapshot from after the lock was
    // granted.
    let mut tx = pool.begin().await.map_err(Error::Inspect)?;

    // The check before the lock avoids locking and waiting at all later starts.
    let Some(users) = demo_table(&mut tx).await.map_err(Error::Inspect)? else { return Ok(0) };
    let empty = format!("-- demo.is_empty\n select not exists (select from {users})");
    let is_empty: bool = sqlx::query_scalar(AssertSqlSafe(empty)).fetch_one(&mut *tx).await.map_err(Error::Inspect)?;
    if !is_empty {
        return Ok(0);
    }
    let missing = |existing| if existing == 0 { rows } else { 0 };
    let inserted = fill(tx, &users, missing, |_| {}).await.map_err(|source| Error::Fill { rows, source })?;
    // 0 if another replica filled the table while this one waited for the lock.
    if inserted > 0 {
        tracing::info!(event = "demo_seeded", rows = inserted, seconds = begun.elapsed().as_secs_f64());
    }
    Ok(inserted)
}

/// Adds users to the demo table until it has `rows`. Returns the number of added users. Calls `progress` with the
/// number of users added so far. After an error no user was added.
pub async fn top_up(pool: &PgPool, rows: u64, progress: impl Fn(u64) + Send + Sync) -> Result<u64, Error> {
    let mut tx = pool.begin().await.map_err(Error::Inspect)?;
    let users = demo_table(&mut tx).await.map_err(Error::Inspect)?.ok_or(Error::NotOurs)?;
    let missing = |existing| rows.saturating_sub(existing);
    fill(tx, &users, missing, progress).await.map_err(|source| Error::Fill { rows, source })
}

/// Adds users to the demo table, and commits. Returns the number of added users. `missing` computes that number from
/// the number of existing users.
async fn fill(
    mut tx: Transaction<'_, Postgres>,
    users: &str,
    missing: impl Fn(u64) -> u64,
    progress: impl Fn(u64) + Send + Sync,
) -> Result<u64, sqlx::Error> {
    lock(&mut tx, users).await?;
    let count = format!(
        "-- demo.count
        select count(*), coalesce(max(substring(email from '\\.([0-9]{{1,18}})@example\\.(?:com|net|org)$')::bigint), 0)
        from {users}"
    );
    let (existing, last): (i64, i64) = sqlx::query_as(AssertSqlSafe(count)).fetch_one(&mut *tx).await?;
    let missing = missing(existing.unsigned_abs());
    if missing == 0 {
        return Ok(0);
    }
    // Numbers continue after the highest number ever used, also by removed users, so that email addresses stay unique.
    let first = last.unsigned_abs() + 1;
    let inserted = load(&mut tx, users, first..=first + missing - 1, &progress).await?;
    // The planner's estimate of rows is then right before autovacuum runs.
    let analyze = format!("-- demo.analyze\n analyze {users}");
    sqlx::query(AssertSqlSafe(analyze)).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(inserted)
}

/// Marks a user of the demo table as deleted now. Doesn't change a user that is deleted already. Returns `None` if
/// there is no such user, or the table was not created by the service.
pub async fn soft_delete(store: &Store, id: i64) -> Result<Option<User>, store::Error> {
    let deleted = store.with::<_, sqlx::Error>(async |conn| {
        let Some(users) = demo_table(conn).await? else { return Ok(None) };
        // Postgres formats the times, because its calendar has a wider range than chrono's.
        let columns = "id, name, email, is_deleted,
             to_char(created_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') as created_at,
             to_char(updated_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') as updated_at";
        let delete = format!(
            "-- demo.soft_delete
             update {users} set is_deleted = true, updated_at = now() where id = $1 and not is_deleted
             returning {columns}"
        );
        let deleted = sqlx::query_as(AssertSqlSafe(delete)).bind(id).fetch_optional(&mut *conn).await?;
        if deleted.is_some() {
            return Ok(deleted);
        }
        let user = format!("-- demo.user\n select {columns} from {users} where id = $1");
        sqlx::query_as(AssertSqlSafe(user)).bind(id).fetch_optional(conn).await
    });
    deleted.await
}

/// Returns the demo table's name with its schema. Returns `None` if the search_path finds no `users`, or one that
/// another role created.
async fn demo_table(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        "-- demo.ours
        select format('%I.%I', n.nspname, c.relname)
        from pg_class as c
        join pg_namespace as n on n.oid = c.relnamespace
        join cdc_export.owned as o on o.schema_name = n.nspname and o.table_name = c.relname
        where c.oid = cdc_export.table_of_role('users')",
    )
    .fetch_optional(connection)
    .await
}

/// Locks the table against all other writers, in particular the seeding of another replica. Readers are not blocked.
async fn lock(connection: &mut PgConnection, users: &str) -> Result<(), sqlx::Error> {
    // Another replica may need longer for millions of users than the usual timeouts of statements.
    let lock = format!(
        "-- demo.lock
         set local lock_timeout = 0; set local statement_timeout = 0;
         lock table {users} in share row exclusive mode"
    );
    let wait = format!("another process fills {users}, or a session has locked it: let it go on, or end its session");
    wait::named(&wait, sqlx::raw_sql(AssertSqlSafe(lock)).execute(connection)).await.map(drop)
}

/// Inserts the users with these numbers, without ids. The sequence assigns the ids, so that later inserts don't
/// collide.
async fn load(
    connection: &mut PgConnection,
    users: &str,
    numbers: RangeInclusive<u64>,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<u64, sqlx::Error> {
    let first = *numbers.start();
    // Uses the database's clock, so that no user has a time in the future.
    let now: DateTime<Utc> = sqlx::query_scalar("-- demo.now\n select now()").fetch_one(&mut *connection).await?;
    let copy = format!(
        "-- demo.load\n copy {users} (name, email, created_at, updated_at, is_deleted) from stdin (format csv)"
    );
    let mut copy = connection.copy_in_raw(&copy).await?;
    let mut chunk = String::with_capacity(CHUNK_BYTES + 1024);
    for number in numbers {
        let Person { name, email, created_at, updated_at, is_deleted } = person(number, now);
        // Some names contain a tab. Writing to a string can't fail.
        let name = name.replace('"', "\"\"");
        let _ = writeln!(chunk, "\"{name}\",{email},{created_at},{updated_at},{is_deleted}");
        if chunk.len() >= CHUNK_BYTES {
            copy.send(chunk.as_bytes()).await?;
            chunk.clear();
            progress(number - first);
        }
    }
    copy.send(chunk.as_bytes()).await?;
    copy.finish().await
}
