//! The demo's table `users`: a plausible month of people for a first export to show, and a soft delete, so that a delta
//! has a deletion to show. A migration makes the table unless the database has a `users` already; [`Dataset::users`]
//! says how it is exported.
//!
//! Nothing here knows of exports, jobs or consumers, nor touches a `users` that others made: only the one recorded in
//! `cdc_export.owned`.
//!
//! [`Dataset::users`]: crate::dataset::Dataset::users

pub mod people;

use std::fmt::Write;
use std::ops::RangeInclusive;
use std::time::Instant;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Transaction};

use crate::demo::people::{Person, person};
use crate::store::{self, Store};

/// Rows are sent once this many bytes of them are ready.
const CHUNK_BYTES: usize = 256 * 1024;

/// A row of the demo table. Times are RFC 3339 with microseconds; `None` for an infinite one.
#[derive(Debug, sqlx_macros::FromRow)]
pub struct User {
    /// Its key.
    pub id: i64,
    /// Full name.
    pub name: String,
    /// Unique address.
    pub email: String,
    /// When it was made.
    pub created_at: Option<String>,
    /// When it was last changed.
    pub updated_at: Option<String>,
    /// True if it is soft-deleted.
    pub is_deleted: bool,
}

/// The errors of filling the demo table.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The `users` there is not the service's.
    #[error("`users` is not the demo table: nothing was added")]
    NotOurs,
    /// The database could not be asked whether the table is ours and empty.
    #[error("whether the demo table is ours and empty could not be read")]
    Inspect(#[source] sqlx::Error),
    /// The users could not be written.
    #[error("the demo table could not be filled with {rows} users")]
    Fill {
        /// The number of users that were requested.
        rows: u64,
        /// The error of Postgres or of the connection.
        source: sqlx::Error,
    },
}

/// Fills an empty demo table with `rows` users and returns how many it inserted: 0 when the table isn't ours or isn't
/// empty.
///
/// All users come in one transaction. Of several replicas that start at once, one fills the table and the others wait,
/// so that none serves exports of an empty table.
///
/// # Errors
/// If Postgres or the connection to it fails. Nothing was inserted then, unless the answer to the commit was lost; in
/// either case it is safe to seed again.
pub async fn seed(pool: &PgPool, rows: u64) -> Result<u64, Error> {
    if rows == 0 {
        return Ok(0);
    }
    let begun = Instant::now();
    // Read committed whatever the database's default is: the check under the lock needs a snapshot from after the lock
    // was granted.
    let mut tx = pool.begin_with("begin isolation level read committed read write").await.map_err(Error::Inspect)?;

    // Checked before the lock too, so that only the first start locks the table and waits.
    let Some(users) = ours(&mut tx).await.map_err(Error::Inspect)? else { return Ok(0) };
    if !is_empty(&mut tx, &users).await? {
        return Ok(0);
    }
    let missing = |there| if there == 0 { rows } else { 0 };
    let inserted = fill(tx, &users, missing, |_| {}).await.map_err(|source| Error::Fill { rows, source })?;
    // Zero if another replica filled the table while this one waited for the lock.
    if inserted > 0 {
        tracing::info!(event = "demo_seeded", rows = inserted, seconds = begun.elapsed().as_secs_f64());
    }
    Ok(inserted)
}

/// Adds users to the demo table until it has `rows`, and returns how many. Tells `progress` how many it has added so
/// far.
///
/// # Errors
/// If the table isn't ours, or Postgres fails; nothing was added then.
pub async fn top_up(pool: &PgPool, rows: u64, progress: impl Fn(u64) + Send + Sync) -> Result<u64, Error> {
    let mut tx = pool.begin_with("begin isolation level read committed read write").await.map_err(Error::Inspect)?;
    let users = ours(&mut tx).await.map_err(Error::Inspect)?.ok_or(Error::NotOurs)?;
    let missing = |there| rows.saturating_sub(there);
    fill(tx, &users, missing, progress).await.map_err(|source| Error::Fill { rows, source })
}

/// Adds as many users to the demo table as `missing` says of a table that has so many, and commits. Returns how many.
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
    let (there, last): (i64, i64) = sqlx::query_as(AssertSqlSafe(count)).fetch_one(&mut *tx).await?;
    let missing = missing(there.unsigned_abs());
    if missing == 0 {
        return Ok(0);
    }
    // Above every number that was given out, also to users who are gone: an address may not come twice.
    let first = last.unsigned_abs() + 1;
    let inserted = load(&mut tx, users, first..=first + missing - 1, &progress).await?;
    // So that the planner knows the table, and its estimated rows are right, before autovacuum comes.
    let analyze = format!("-- demo.analyze\n analyze {users}");
    sqlx::query(AssertSqlSafe(analyze)).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(inserted)
}

/// Marks a user of the demo table as deleted now; one that is deleted stays as it is. `None`: there is no such user, or
/// the table isn't ours.
pub async fn soft_delete(store: &Store, id: i64) -> Result<Option<User>, store::Error> {
    let deleted = store.with::<_, sqlx::Error>(async |conn| {
        let Some(users) = ours(conn).await? else { return Ok(None) };
        // Postgres formats the times: its calendar is longer than chrono's.
        let columns = "id, name, email, is_deleted,
             to_char(created_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') as created_at,
             to_char(updated_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') as updated_at";
        let delete = format!(
            "-- demo.soft_delete
             update {users} set is_deleted = true, updated_at = now() where id = $1 and not is_deleted returning {columns}"
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

/// The demo table's name with its schema; `None`: the `users` that the role's search_path finds was made by somebody
/// else, or there is none.
async fn ours(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
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

async fn is_empty(connection: &mut PgConnection, users: &str) -> Result<bool, Error> {
    let empty = format!("-- demo.is_empty\n select not exists (select from {users})");
    sqlx::query_scalar(AssertSqlSafe(empty)).fetch_one(connection).await.map_err(Error::Inspect)
}

/// Locks out all other writers, another replica's seeding above all; readers go on.
async fn lock(connection: &mut PgConnection, users: &str) -> Result<(), sqlx::Error> {
    // Another replica's millions of users may take longer than a timeout meant for statements.
    sqlx::query(
        "-- demo.lift_timeouts
        select set_config(name, '0', true)
        from unnest(array['lock_timeout', 'statement_timeout']) as name",
    )
    .execute(&mut *connection)
    .await?;
    let lock = format!("-- demo.lock\n lock table {users} in share row exclusive mode");
    sqlx::query(AssertSqlSafe(lock)).execute(connection).await?;
    Ok(())
}

/// Writes the users of these numbers, without their ids: the sequence moves along, and later inserts don't collide.
async fn load(
    connection: &mut PgConnection,
    users: &str,
    numbers: RangeInclusive<u64>,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<u64, sqlx::Error> {
    let first = *numbers.start();
    // The database's clock, so that no user's times are in its future.
    let now: DateTime<Utc> = sqlx::query_scalar("-- demo.now\n select now()").fetch_one(&mut *connection).await?;
    let copy = format!(
        "-- demo.load\n copy {users} (name, email, created_at, updated_at, is_deleted) from stdin (format csv)"
    );
    let mut copy = connection.copy_in_raw(&copy).await?;
    let mut chunk = String::with_capacity(CHUNK_BYTES + 1024);
    for number in numbers {
        let Person { name, email, created_at, updated_at, is_deleted } = person(number, now);
        // Some names have a tab. Writing to a text can't fail.
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
