//! The seeded users of the demo table: how many, once only, what they look like, and whose table.

use std::collections::HashSet;

use cdc_export::demo;

use crate::harness::Database;

const CHANGES: &str = include_str!("../../seeds/changes.sql");
const AWKWARD: &str = include_str!("../../seeds/awkward.sql");

/// A database with the same table, but somebody's.
async fn foreign() -> Database {
    Database::new_with("delete from cdc_export.owned where table_name = 'users'").await
}

async fn seed(database: &Database, rows: u64) -> u64 {
    demo::seed(&database.pool, rows).await.unwrap()
}

async fn count(database: &Database, condition: &str) -> i64 {
    database.one(&format!("select count(*) from users where {condition}")).await
}

/// Runs what psql would, but for its backslash commands.
async fn run_script(database: &Database, script: &str) -> Result<(), sqlx::Error> {
    let sql: Vec<&str> = script.lines().filter(|line| !line.starts_with('\\')).collect();
    let mut connection = database.pool.acquire().await?.detach();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.join("\n"))).execute(&mut connection).await?;
    Ok(())
}

#[tokio::test]
async fn an_empty_table_of_ours_is_filled_once_and_ids_go_on_after_that() {
    let database = Database::new().await;
    for (rows, inserted) in [(500, 500), (500, 0), (1_000, 0)] {
        assert_eq!(seed(&database, rows).await, inserted);
    }
    assert_eq!(count(&database, "true").await, 500);
    let insert = "insert into users (name, email, created_at, updated_at)
        values ('Ada', 'ada@example.org', now(), now()) returning id";
    assert_eq!(database.one::<i64>(insert).await, 501);
}

#[tokio::test]
async fn a_second_seed_waits_for_the_first_to_commit() {
    let database = Database::new().await;
    let insert = "lock table users in share row exclusive mode;
        insert into users (name, email, created_at, updated_at) values ('a', 'a', now(), now())";
    let first = database.open(insert).await;
    let pool = database.pool.clone();
    let second = tokio::spawn(async move { demo::seed(&pool, 100).await });
    database.waits_for("users").await;
    first.commit().await.unwrap();
    assert_eq!(second.await.unwrap().unwrap(), 0);
    assert_eq!(count(&database, "true").await, 1);
}

#[tokio::test]
async fn a_database_without_a_users_table_is_left_so() {
    assert_eq!(seed(&Database::new_with("drop table users").await, 100).await, 0);
}

#[tokio::test]
async fn the_seeded_users_are_a_plausible_month() {
    let database = Database::new().await;
    seed(&database, 20_000).await;
    let deleted = count(&database, "is_deleted").await;
    assert!((200..400).contains(&deleted), "{deleted} of 20,000 deleted");
    let unchanged = count(&database, "created_at = updated_at").await;
    assert!((11_000..13_000).contains(&unchanged), "{unchanged} of 20,000 unchanged");

    for nobody in [
        "updated_at > now()",
        "updated_at < created_at",
        "created_at < now() - interval '30 days 1 minute'",
        "is_deleted and updated_at = created_at",
        "length(name) < 2 or name <> trim(name)",
        "email !~ '^[a-z0-9.]+@example[.](com|net|org)$'",
    ] {
        assert_eq!(count(&database, nobody).await, 0, "{nobody}");
    }
    for somebody in [
        "created_at < now() - interval '29 days'",
        "created_at > now() - interval '1 day'",
        "updated_at > now() - interval '2 hours'",
        "name ~ '[^ -~]'",
    ] {
        assert_ne!(count(&database, somebody).await, 0, "{somebody}");
    }
    let days = "select count(distinct date_trunc('day', updated_at at time zone 'UTC')) from users";
    let days: i64 = database.one(days).await;
    assert!(days >= 30, "{days} days");
    let micros: i64 = database.one("select count(distinct extract(microseconds from updated_at)) from users").await;
    assert!(micros > 15_000, "{micros} different microseconds");
}

#[tokio::test]
async fn names_and_addresses_are_the_same_everywhere_however_many() {
    let (here, there) = (Database::new().await, Database::new().await);
    seed(&here, 300).await;
    seed(&there, 1_000).await;
    let people = "select name, email from users where id <= 300 order by id";
    let ours: Vec<(String, String)> = sqlx::query_as(people).fetch_all(&here.pool).await.unwrap();
    let theirs: Vec<(String, String)> = sqlx::query_as(people).fetch_all(&there.pool).await.unwrap();
    assert_eq!(ours, theirs);
    let names: HashSet<&String> = ours.iter().map(|(name, _)| name).collect();
    assert!(names.len() > 290, "only {} different names", names.len());
}

#[tokio::test]
async fn a_failed_seed_leaves_nothing_and_the_next_one_succeeds() {
    let constraint = "alter table users add constraint no_hundredth check (email !~ '[.]900@')";
    let database = Database::new_with(constraint).await;
    let error = demo::seed(&database.pool, 1_000).await.unwrap_err();
    assert_eq!(error.to_string(), "the demo table could not be filled with 1000 users");
    assert_eq!(count(&database, "true").await, 0);
    database.run("alter table users drop constraint no_hundredth").await;
    assert_eq!(seed(&database, 1_000).await, 1_000);
}

#[tokio::test]
async fn a_hundred_thousand_are_counted_and_analyzed() {
    let database = Database::new().await;
    assert_eq!(seed(&database, 100_000).await, 100_000);
    assert_eq!(count(&database, "not is_deleted").await, 98_113);
    let estimate: f32 = database.one("select reltuples from pg_class where oid = 'users'::regclass").await;
    assert!((estimate - 100_000.0).abs() < 1_000.0, "estimated at {estimate}");
}

#[tokio::test]
async fn the_changes_to_try_a_delta_on_are_as_many_as_announced() {
    let database = Database::new().await;
    seed(&database, 1_000).await;
    database.run("create table before as select * from users").await;
    run_script(&database, CHANGES).await.unwrap();
    assert_eq!(count(&database, "id > 1000").await, 3);
    assert_eq!(count(&database, "id <= 1000").await, 999);
    let changed = "select count(*) from users join before using (id) where users.is_deleted = before.is_deleted
        and users.name <> before.name";
    assert_eq!(database.one::<i64>(changed).await, 21);
    let deleted = "select count(*) from users join before using (id) where users.is_deleted and not before.is_deleted";
    assert_eq!(database.one::<i64>(deleted).await, 5);
}

#[tokio::test]
async fn the_seed_scripts_run_again_and_refuse_a_table_that_somebody_brought() {
    let (ours, theirs) = (Database::new().await, foreign().await);
    for script in [CHANGES, AWKWARD] {
        run_script(&ours, script).await.unwrap();
        run_script(&ours, script).await.unwrap();
        let refusal = run_script(&theirs, script).await.unwrap_err().to_string();
        assert!(refusal.contains("not the demo table"), "{refusal}");
    }
    assert_eq!(count(&ours, "email = 'crlf@example.com' and name = E'Carriage\\r\\nReturn'").await, 1);
    assert_eq!(count(&theirs, "true").await, 0);
}
