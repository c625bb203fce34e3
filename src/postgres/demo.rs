//! postgres::demo: the seeded users of the demo table, a plausible month of people for a first
//! export to show. It must not know exports, jobs or consumers, nor touch a `users` table that
//! somebody brought: only one recorded in `cdc_export.owned` is filled, and only while empty.

use std::ops::RangeInclusive;
use std::time::Instant;

use chrono::{DateTime, Utc};
use fake::faker::name::raw::Name;
use fake::locales::{DE_DE, EN, FR_FR, IT_IT, JA_JP, NL_NL, PT_BR, TR_TR, ZH_CN};
use fake::rand::SeedableRng;
use fake::rand::rngs::StdRng;
use fake::{Fake, RngExt};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

/// Every so-manieth user is soft deleted: 1.9 %, so that 98,113 of 100,000 are live.
///
/// A stride and no dice: a small table has its deleted users too, from the seventh on.
pub const DELETED_EVERY: u64 = 53;

/// The share of live users, in percent, whose `updated_at` is later than their `created_at`.
pub const CHANGED_PERCENT: u32 = 40;

/// The users were created, and changed, within this many days before the seeding.
pub const SPAN_DAYS: i64 = 30;

/// Fixed, so that user 17 has the same name and address on every machine. (An upgrade of `fake` may change them all: its
/// lists grow, and its dice promise no sequence across versions.)
const SEED: u64 = 0x6364_635f_6578_706f;

const SPAN_MICROS: i64 = SPAN_DAYS * 24 * 60 * 60 * 1_000_000;

/// 2000-01-01T00:00:00Z, where Postgres begins to count, in microseconds of the Unix epoch.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Rows are sent once this many bytes of them are ready.
const CHUNK_BYTES: usize = 256 * 1024;

/// Why the demo table could not be seeded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The table is somebody's.
    #[error("`users` is not the demo table: nothing was added")]
    NotOurs,
    /// The database could not be asked whether the table is ours and empty.
    #[error("whether the demo table is ours and empty could not be read")]
    Inspect(#[source] sqlx::Error),
    /// The users could not be written.
    #[error("the demo table could not be filled with {rows} users")]
    Fill {
        /// How many users were asked for.
        rows: u64,
        /// What Postgres or the connection said.
        source: sqlx::Error,
    },
}

/// Fills an empty demo table with `rows` users and returns how many it inserted: 0 when the
/// table isn't ours or isn't empty.
///
/// One transaction, so that nobody sees half of the users. Of several replicas that start at once
/// one seeds; the others wait for it, lest they serve exports of an empty table.
///
/// # Errors
/// If Postgres or the connection to it fails. Nothing was inserted then, unless the answer to the commit was lost; in
/// either case it is safe to seed again.
pub async fn seed(pool: &PgPool, rows: u64) -> Result<u64, Error> {
    if rows == 0 {
        return Ok(0);
    }
    let begun = Instant::now();
    // Read committed whatever the database's default: the look under the lock needs a snapshot
    // taken after the lock was granted.
    let mut tx = pool.begin_with("begin isolation level read committed read write").await.map_err(Error::Inspect)?;

    // Asked before the lock too: on every start but the first nothing is locked, and nothing waits.
    let Some(users) = ours(&mut tx).await? else { return Ok(0) };
    if !is_empty(&mut tx, &users).await? {
        return Ok(0);
    }
    let filling = |source| Error::Fill { rows, source };
    lock(&mut tx, &users).await.map_err(filling)?;
    if !is_empty(&mut tx, &users).await? {
        return Ok(0);
    }
    let inserted = load(&mut tx, &users, 1..=rows, &|_| {}).await.map_err(filling)?;
    analyze(&mut tx, &users).await.map_err(filling)?;
    tx.commit().await.map_err(filling)?;

    tracing::info!(event = "demo_seeded", rows = inserted, seconds = begun.elapsed().as_secs_f64());
    Ok(inserted)
}

/// Adds users to the demo table until it has `rows`, and returns how many. Tells `progress` how many it has added so far.
///
/// # Errors
/// If the table isn't ours, or Postgres fails; nothing was added then.
pub async fn top_up(pool: &PgPool, rows: u64, progress: impl Fn(u64) + Send + Sync) -> Result<u64, Error> {
    let mut tx = pool.begin_with("begin isolation level read committed read write").await.map_err(Error::Inspect)?;
    let users = ours(&mut tx).await?.ok_or(Error::NotOurs)?;
    let filling = |source| Error::Fill { rows, source };
    lock(&mut tx, &users).await.map_err(filling)?;
    let count = format!(
        "-- postgres.demo.count
        select count(*), coalesce(max(substring(email from '\\.([0-9]{{1,18}})@example\\.(?:com|net|org)$')::bigint), 0)
        from {users}"
    );
    let counted = sqlx::query_as(AssertSqlSafe(count)).fetch_one(&mut *tx).await;
    let (there, last): (i64, i64) = counted.map_err(filling)?;
    let missing = rows.saturating_sub(there.unsigned_abs());
    if missing == 0 {
        return Ok(0);
    }
    // Above every number that was given out, also to users who are gone: an address may not come twice.
    let first = last.unsigned_abs() + 1;
    let inserted = load(&mut tx, &users, first..=first + missing - 1, &progress).await.map_err(filling)?;
    analyze(&mut tx, &users).await.map_err(filling)?;
    tx.commit().await.map_err(filling)?;
    Ok(inserted)
}

/// The demo table, with its schema; `None`: the `users` that the role's search_path finds is somebody's, or there is none.
async fn ours(connection: &mut PgConnection) -> Result<Option<String>, Error> {
    sqlx::query_scalar(
        "-- postgres.demo.ours
        select format('%I.%I', n.nspname, c.relname)
        from pg_class as c
        join pg_namespace as n on n.oid = c.relnamespace
        join cdc_export.owned as o on o.schema_name = n.nspname and o.table_name = c.relname
        where c.oid = cdc_export.table_of_role('users')",
    )
    .fetch_optional(connection)
    .await
    .map_err(Error::Inspect)
}

async fn is_empty(connection: &mut PgConnection, users: &str) -> Result<bool, Error> {
    let empty = format!("-- postgres.demo.is_empty\n select not exists (select from {users})");
    sqlx::query_scalar(AssertSqlSafe(empty)).fetch_one(connection).await.map_err(Error::Inspect)
}

/// Keeps out every other writer, a second seeding above all; readers are not disturbed.
async fn lock(connection: &mut PgConnection, users: &str) -> Result<(), sqlx::Error> {
    // Another replica's millions of users may take longer than a timeout meant for statements.
    sqlx::query(
        "-- postgres.demo.lift_timeouts
        select set_config(name, '0', true)
        from unnest(array['lock_timeout', 'statement_timeout']) as name",
    )
    .execute(&mut *connection)
    .await?;
    let lock = format!("-- postgres.demo.lock\n lock table {users} in share row exclusive mode");
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
    let now = now(connection).await?;
    let copy = format!(
        "-- postgres.demo.load
        copy {users} (name, email, created_at, updated_at, is_deleted) from stdin (format binary)"
    );
    let mut copy = connection.copy_in_raw(&copy).await?;
    let mut chunk = Vec::with_capacity(CHUNK_BYTES + 1024);
    chunk.extend_from_slice(COPY_HEADER);
    for number in numbers {
        encode(&user(number, now), &mut chunk);
        if chunk.len() >= CHUNK_BYTES {
            copy.send(chunk.as_slice()).await?;
            chunk.clear();
            progress(number - first);
        }
    }
    chunk.extend_from_slice(COPY_TRAILER);
    copy.send(chunk.as_slice()).await?;
    copy.finish().await
}

/// The database's clock, not ours: no user of theirs comes from the future.
async fn now(connection: &mut PgConnection) -> Result<DateTime<Utc>, sqlx::Error> {
    sqlx::query_scalar(
        "-- postgres.demo.now
        select now()",
    )
    .fetch_one(connection)
    .await
}

/// So that the planner knows the table, and its estimated rows are right, before autovacuum comes.
async fn analyze(connection: &mut PgConnection, users: &str) -> Result<(), sqlx::Error> {
    let analyze = format!("-- postgres.demo.analyze\n analyze {users}");
    sqlx::query(AssertSqlSafe(analyze)).execute(connection).await?;
    Ok(())
}

struct User {
    name: String,
    email: String,
    created_at: i64,
    updated_at: i64,
    is_deleted: bool,
}

/// The user of that number, counted from 1. Each has dice of its own, so that it stays the same
/// however many are made, and whichever is made first. The times, in microseconds of the Unix
/// epoch, lie relative to `now`.
fn user(number: u64, now: DateTime<Utc>) -> User {
    let mut dice = StdRng::seed_from_u64(SEED ^ number);
    let name = name(&mut dice);
    let email = email(&name, number, &mut dice);

    let is_deleted = number % DELETED_EVERY == 7;
    let is_changed = is_deleted || dice.random_range(0..100) < CHANGED_PERCENT;
    let created_ago = dice.random_range(1..SPAN_MICROS);
    let updated_ago = if is_changed { dice.random_range(0..created_ago) } else { created_ago };
    User {
        name,
        email,
        created_at: now.timestamp_micros() - created_ago,
        updated_at: now.timestamp_micros() - updated_ago,
        is_deleted,
    }
}

/// Mostly English, and every other script that a file has to carry unharmed.
fn name(dice: &mut StdRng) -> String {
    match dice.random_range(0..20) {
        0 => Name(DE_DE).fake_with_rng(dice),
        1 => Name(FR_FR).fake_with_rng(dice),
        2 => Name(IT_IT).fake_with_rng(dice),
        3 => Name(JA_JP).fake_with_rng(dice),
        4 => Name(NL_NL).fake_with_rng(dice),
        5 => Name(PT_BR).fake_with_rng(dice),
        6 => Name(TR_TR).fake_with_rng(dice),
        7 => Name(ZH_CN).fake_with_rng(dice),
        _ => Name(EN).fake_with_rng(dice),
    }
}

/// `ada.lovelace.17@example.org`: the number makes it unique, and RFC 2606 keeps those domains
/// free of real people.
fn email(name: &str, number: u64, dice: &mut StdRng) -> String {
    let words: Vec<String> = name
        .split_whitespace()
        .map(|word| word.chars().filter(char::is_ascii_alphanumeric).collect())
        .filter(|word: &String| !word.is_empty())
        .collect();
    let who = if words.is_empty() { "user".to_owned() } else { words.join(".").to_ascii_lowercase() };
    let domain = ["com", "net", "org"][dice.random_range(0..3)];
    format!("{who}.{number}@example.{domain}")
}

/// Signature, no flags, no extension: <https://www.postgresql.org/docs/15/sql-copy.html>, "Binary Format".
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// A count of fields that no row has.
const COPY_TRAILER: &[u8] = &(-1_i16).to_be_bytes();

/// Binary, because a name needs no escaping there and a time no formatting.
fn encode(user: &User, chunk: &mut Vec<u8>) {
    chunk.extend_from_slice(&5_i16.to_be_bytes());
    encode_field(user.name.as_bytes(), chunk);
    encode_field(user.email.as_bytes(), chunk);
    for micros in [user.created_at, user.updated_at] {
        encode_field(&(micros - POSTGRES_EPOCH_MICROS).to_be_bytes(), chunk);
    }
    encode_field(&[u8::from(user.is_deleted)], chunk);
}

fn encode_field(value: &[u8], chunk: &mut Vec<u8>) {
    let length = i32::try_from(value.len()).expect("a generated value is far below 2 GiB");
    chunk.extend_from_slice(&length.to_be_bytes());
    chunk.extend_from_slice(value);
}
