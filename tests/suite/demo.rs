//! The seeded users of the demo table: how many, once only, what they look like, and whose table.

use std::collections::HashSet;

use cdc_export::demo;
use sqlx::PgPool;

use crate::harness::Database;

#[tokio::test]
async fn an_empty_table_of_ours_is_filled_once() {
    let pool = demo_table().await;

    assert_eq!(demo::seed(&pool, 500).await.unwrap(), 500);
    assert_eq!(demo::seed(&pool, 500).await.unwrap(), 0);
    assert_eq!(demo::seed(&pool, 1_000).await.unwrap(), 0);

    assert_eq!(count(&pool, "true").await, 500);
}

#[tokio::test]
async fn no_rows_asked_for_leaves_the_table_empty() {
    let pool = demo_table().await;

    assert_eq!(demo::seed(&pool, 0).await.unwrap(), 0);

    assert_eq!(count(&pool, "true").await, 0);
}

#[tokio::test]
async fn of_seeds_at_once_one_inserts() {
    let pool = demo_table().await;

    let (a, b, c) = tokio::join!(demo::seed(&pool, 5_000), demo::seed(&pool, 5_000), demo::seed(&pool, 5_000),);

    let mut inserted = [a.unwrap(), b.unwrap(), c.unwrap()];
    inserted.sort_unstable();
    assert_eq!(inserted, [0, 0, 5_000]);
    assert_eq!(count(&pool, "true").await, 5_000);
}

#[tokio::test]
async fn a_second_seed_waits_for_the_first_to_commit() {
    let pool = demo_table().await;
    let mut first = pool.begin().await.unwrap();
    sqlx::query("lock table users in share row exclusive mode").execute(&mut *first).await.unwrap();
    sqlx::query("insert into users (name, email, created_at, updated_at) values ('a', 'a', now(), now())")
        .execute(&mut *first)
        .await
        .unwrap();

    let second = tokio::spawn({
        let pool = pool.clone();
        async move { demo::seed(&pool, 100).await }
    });
    let waiting = "select exists (select 1 from pg_locks where relation = 'users'::regclass and not granted)";
    while !sqlx::query_scalar::<_, bool>(waiting).fetch_one(&pool).await.unwrap() {
        assert!(!second.is_finished(), "the second seed did not wait");
        tokio::task::yield_now().await;
    }
    first.commit().await.unwrap();

    assert_eq!(second.await.unwrap().unwrap(), 0);
    assert_eq!(count(&pool, "true").await, 1);
}

#[tokio::test]
async fn a_table_that_somebody_brought_stays_untouched() {
    let pool = database().await;

    assert_eq!(demo::seed(&pool, 100).await.unwrap(), 0);

    assert_eq!(count(&pool, "true").await, 0);
}

#[tokio::test]
async fn a_foreign_table_first_in_the_search_path_stays_untouched() {
    let pool = demo_table().await;
    let pool = PgPool::connect_with((*pool.connect_options()).clone().options([("search_path", "theirs,public")]))
        .await
        .unwrap();
    sqlx::raw_sql("create schema theirs; create table theirs.users (like public.users including all)")
        .execute(&pool)
        .await
        .unwrap();

    assert_eq!(demo::seed(&pool, 100).await.unwrap(), 0);

    assert_eq!(count(&pool, "true").await, 0);
}

#[tokio::test]
async fn a_database_without_a_users_table_is_left_so() {
    let pool = demo_table().await;
    sqlx::query("drop table users").execute(&pool).await.unwrap();

    assert_eq!(demo::seed(&pool, 100).await.unwrap(), 0);
}

#[tokio::test]
async fn the_seeded_users_are_a_plausible_month() {
    let pool = demo_table().await;
    demo::seed(&pool, 20_000).await.unwrap();

    let deleted = count(&pool, "is_deleted").await;
    assert!((200..400).contains(&deleted), "{deleted} of 20,000 deleted");
    let unchanged = count(&pool, "created_at = updated_at").await;
    assert!((11_000..13_000).contains(&unchanged), "{unchanged} of 20,000 unchanged");

    for nobody in [
        "updated_at > now()",
        "updated_at < created_at",
        "created_at < now() - interval '30 days 1 minute'",
        "is_deleted and updated_at = created_at",
        "length(name) < 2 or name <> trim(name)",
        "email !~ '^[a-z0-9.]+@example[.](com|net|org)$'",
    ] {
        assert_eq!(count(&pool, nobody).await, 0, "{nobody}");
    }
    for somebody in [
        "created_at < now() - interval '29 days'",
        "created_at > now() - interval '1 day'",
        "updated_at > now() - interval '2 hours'",
        "name ~ '[^ -~]'",
    ] {
        assert_ne!(count(&pool, somebody).await, 0, "{somebody}");
    }
    let days: i64 =
        scalar(&pool, "select count(distinct date_trunc('day', updated_at at time zone 'UTC')) from users").await;
    assert!(days >= 30, "{days} days");
    let micros: i64 = scalar(&pool, "select count(distinct extract(microseconds from updated_at)) from users").await;
    assert!(micros > 15_000, "{micros} different microseconds");
}

#[tokio::test]
async fn a_small_table_has_deleted_users_too() {
    let pool = demo_table().await;

    demo::seed(&pool, 100).await.unwrap();

    assert_eq!(count(&pool, "is_deleted").await, 2);
}

#[tokio::test]
async fn names_and_addresses_are_the_same_everywhere_however_many() {
    let (here, there) = (demo_table().await, demo_table().await);
    demo::seed(&here, 300).await.unwrap();
    demo::seed(&there, 1_000).await.unwrap();

    let people = "select name, email from users where id <= 300 order by id";
    let ours: Vec<(String, String)> = sqlx::query_as(people).fetch_all(&here).await.unwrap();
    let theirs: Vec<(String, String)> = sqlx::query_as(people).fetch_all(&there).await.unwrap();

    assert_eq!(ours, theirs);
    let names: HashSet<&String> = ours.iter().map(|(name, _)| name).collect();
    assert!(names.len() > 290, "only {} different names", names.len());
}

#[tokio::test]
async fn ids_go_on_after_the_seeded_ones() {
    let pool = demo_table().await;
    demo::seed(&pool, 100).await.unwrap();

    let id: i64 = scalar(
        &pool,
        "insert into users (name, email, created_at, updated_at)
        values ('Ada', 'ada@example.org', now(), now()) returning id",
    )
    .await;

    assert_eq!(id, 101);
}

#[tokio::test]
async fn a_failed_seed_leaves_nothing_and_the_next_one_succeeds() {
    let pool = demo_table().await;
    sqlx::query("alter table users add constraint no_hundredth check (email !~ '[.]900@')")
        .execute(&pool)
        .await
        .unwrap();

    let error = demo::seed(&pool, 1_000).await.unwrap_err();
    assert_eq!(error.to_string(), "the demo table could not be filled with 1000 users");
    assert_eq!(count(&pool, "true").await, 0);

    sqlx::query("alter table users drop constraint no_hundredth").execute(&pool).await.unwrap();
    assert_eq!(demo::seed(&pool, 1_000).await.unwrap(), 1_000);
}

#[tokio::test]
async fn a_hundred_thousand_are_counted_and_analyzed() {
    let pool = demo_table().await;

    assert_eq!(demo::seed(&pool, 100_000).await.unwrap(), 100_000);
    assert_eq!(count(&pool, "not is_deleted").await, 98_113);
    let estimate: f32 = scalar(&pool, "select reltuples from pg_class where oid = 'users'::regclass").await;
    assert!((estimate - 100_000.0).abs() < 1_000.0, "estimated at {estimate}");
}

#[tokio::test]
async fn the_changes_to_try_a_delta_on_are_as_many_as_announced() {
    let pool = demo_table().await;
    demo::seed(&pool, 1_000).await.unwrap();
    sqlx::query("create table before as select * from users").execute(&pool).await.unwrap();

    run_script(&pool, CHANGES).await.unwrap();

    assert_eq!(count(&pool, "id > 1000").await, 3);
    assert_eq!(count(&pool, "id <= 1000").await, 999);
    let changed = "select count(*) from users join before using (id) where users.is_deleted = before.is_deleted
        and users.name <> before.name";
    assert_eq!(scalar::<i64>(&pool, changed).await, 21);
    let deleted = "select count(*) from users join before using (id) where users.is_deleted and not before.is_deleted";
    assert_eq!(scalar::<i64>(&pool, deleted).await, 5);
}

#[tokio::test]
async fn the_seed_scripts_run_again_and_refuse_a_table_that_somebody_brought() {
    let (ours, theirs) = (demo_table().await, database().await);

    for script in [CHANGES, AWKWARD] {
        run_script(&ours, script).await.unwrap();
        run_script(&ours, script).await.unwrap();
        let refusal = run_script(&theirs, script).await.unwrap_err().to_string();
        assert!(refusal.contains("not the demo table"), "{refusal}");
    }

    assert_eq!(count(&ours, "email = 'crlf@example.com' and name = E'Carriage\\r\\nReturn'").await, 1);
    assert_eq!(count(&theirs, "true").await, 0);
}

const CHANGES: &str = include_str!("../../seeds/changes.sql");
const AWKWARD: &str = include_str!("../../seeds/awkward.sql");

/// Runs what psql would, but for its backslash commands.
async fn run_script(pool: &PgPool, script: &str) -> Result<(), sqlx::Error> {
    let sql: Vec<&str> = script.lines().filter(|line| !line.starts_with('\\')).collect();
    let mut connection = pool.acquire().await?.detach();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.join("\n"))).execute(&mut connection).await?;
    Ok(())
}

async fn count(pool: &PgPool, condition: &str) -> i64 {
    let sql = format!("select count(*) from users where {condition}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(pool).await.unwrap()
}

async fn scalar<T>(pool: &PgPool, sql: &'static str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// A database with an empty demo table of ours.
async fn demo_table() -> PgPool {
    Database::new().await.pool
}

/// The same table, but somebody's.
async fn database() -> PgPool {
    let database = Database::new_with("delete from cdc_export.owned where table_name = 'users'").await;
    database.pool
}
