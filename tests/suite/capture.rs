//! Exact change capture: what changed is told by the log, not by the clock.

use std::time::Duration;

use cdc_export::dataset::catalog::Catalog;
use cdc_export::source::capture::tracking;
use cdc_export::source::purge;
use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::harness::{Database, Service, Start, eventually, needs_full, serving_users};

async fn after_a_full_export(users: i64) -> (Database, Service) {
    let (database, service) = serving_users(users).await;
    service.export("full", "a").await;
    (database, service)
}

#[tokio::test]
async fn a_transaction_that_commits_late_is_not_lost() {
    let (database, service) = after_a_full_export(20).await;
    let late = database.open("update users set name = 'late', updated_at = '2026-03-01' where id = 1").await;
    database.run("update users set name = 'early', updated_at = '2026-03-02' where id = 2").await;

    let (job, file) = service.export("incremental", "a").await;
    assert_eq!(file.ids(), [2]);
    assert_eq!(job["openTransactions"], 1);
    assert!(job["oldestTransactionSeconds"].as_f64().is_some_and(|seconds| seconds >= 0.0));
    assert_eq!(job["watermarkTo"], "2026-03-02T00:00:00.000000Z");
    late.commit().await.unwrap();

    let (job, file) = service.export("incremental", "a").await;
    assert_eq!(file.ids(), [1], "its time is below the watermark");
    assert_eq!((&job["lateRows"], &job["openTransactions"]), (&json!(1), &json!(0)));
    assert_eq!(job["watermarkTo"], "2026-03-02T00:00:00.000000Z", "it doesn't move back");
    let (job, file) = service.export("incremental", "a").await;
    assert!(file.rows.is_empty(), "and nothing twice");
    assert_eq!((&job["lateRows"], &job["continuity"]), (&json!(0), &json!(null)));
}

#[tokio::test]
async fn deletions_and_changed_keys_are_seen_by_a_delta_alone() {
    let (database, service) = after_a_full_export(19).await;
    let changes = "
        delete from users where id = 3;
        update users set id = 100 where id = 4;
        delete from users where id = 5;
        insert into users (id, name, email, created_at, updated_at)
          values (5, 'again', 'again@example.com', '2020-01-01', '2020-01-01');
        insert into users (id, name, email, created_at, updated_at) values (200, 'short', 'short@example.com', now(), now());
        delete from users where id = 200";
    database.run(changes).await;
    let (_, incremental) = service.export("incremental", "a").await;
    assert_eq!(incremental.ids(), [5, 100]);

    let (job, delta) = service.export("delta", "a").await;
    let mut rows: Vec<_> = delta.rows.iter().map(|row| (row[0].as_str(), row[1].as_str(), row[2].as_str())).collect();
    rows.sort_unstable();
    let deleted = [("DELETE", "200", ""), ("DELETE", "3", ""), ("DELETE", "4", "")];
    assert_eq!(rows, deleted, "the live rows went with the incremental export, the deletions did not");
    assert!(delta.rows.iter().all(|row| row[3..] == ["", "", "", "true"]), "{:?}", delta.rows);
    assert_eq!(job["lateRows"], 3);
    let (_, delta) = service.export("delta", "a").await;
    assert!(delta.rows.is_empty());
}

#[tokio::test]
async fn future_and_infinite_times_blind_nobody() {
    let (database, service) = after_a_full_export(20).await;
    database.run("update users set updated_at = '2999-01-01' where id = 1; update users set updated_at = 'infinity' where id = 2").await;
    let (job, file) = service.export("incremental", "a").await;
    assert_eq!(file.ids(), [1, 2]);
    assert_eq!(job["watermarkTo"], "2999-01-01T00:00:00.000000Z");
    database.run("update users set name = 'x', updated_at = now() where id = 3; update users set updated_at = '-infinity' where id = 4").await;
    let (job, file) = service.export("incremental", "a").await;
    assert_eq!(file.ids(), [3, 4]);
    assert_eq!(job["lateRows"], 2);
}

#[tokio::test]
async fn times_that_no_watermark_can_be_are_not_sent_again() {
    for time in ["infinity", "-infinity", "250000-01-01"] {
        let database = Database::with_users(9).await;
        database.run(&format!("update users set updated_at = '{time}'")).await;
        let service = Start::on(&database).service().await;
        let (job, file) = service.export("full", "a").await;
        assert_eq!((file.rows.len(), &job["watermarkTo"]), (9, &json!(null)));
        for export_type in ["incremental", "delta"] {
            let (_, file) = service.export(export_type, "a").await;
            assert!(file.rows.is_empty(), "{time}: {export_type} sends unchanged rows: {:?}", file.ids());
        }
        database.run("update users set name = 'x' where id = 1").await;
        let (_, file) = service.export("delta", "a").await;
        assert_eq!(file.ids(), [1]);
        database.run("update users set updated_at = '2026-01-01' where id = 2").await;
        let (job, file) = service.export("delta", "a").await;
        assert_eq!((file.ids(), &job["watermarkTo"]), (vec![2], &json!("2026-01-01T00:00:00.000000Z")));
        let (_, file) = service.export("incremental", "a").await;
        assert!(file.rows.is_empty(), "{time}: {:?}", file.ids());
    }
}

#[tokio::test]
async fn the_log_keeps_what_somebody_has_yet_to_see() {
    let (database, service) = after_a_full_export(20).await;
    let purged = async || {
        let caps = purge::Caps { bytes: 1 << 40, age: Duration::from_secs(3600) };
        purge::purge(&database.pool, &caps).await.unwrap();
        database.one::<i64>("select count(*) from cdc_export.change_log").await
    };
    assert_eq!(purged().await, 0, "everybody has seen the first rows");
    // Its transaction is older than all that follows.
    let idle = database.open("select pg_current_xact_id()").await;
    database.run("update users set name = 'x' where id <= 3").await;
    assert_eq!(purged().await, 3);
    service.export("full", "b").await;
    service.export("incremental", "a").await;
    assert_eq!(purged().await, 3, "deletions are due to a");
    service.export("delta", "a").await;
    assert_eq!(purged().await, 0, "one idle writer doesn't pin the log");
    idle.commit().await.unwrap();
}

#[tokio::test]
async fn incremental_exports_alone_do_not_hold_the_log_for_ever() {
    let (database, service) = after_a_full_export(19).await;
    // The log of three rounds. The last delta was long ago, and incrementals come all the time.
    let caps = purge::Caps { bytes: 1_200, age: Duration::from_secs(24 * 3600) };
    database.run("update watermarks set deletions_saved_at = now() - interval '2 hours'").await;
    for round in 1..=4 {
        database.run("update users set name = name || 'x' where id <= 9").await;
        let (_, file) = service.export("incremental", "a").await;
        assert_eq!(file.rows.len(), 9, "exact all the time");
        purge::purge(&database.pool, &caps).await.unwrap();
        let left: i64 = database.one("select count(*) from cdc_export.change_log").await;
        assert_eq!(left, if round < 3 { 9 * round } else { 0 });
    }
    let id = service.submit("delta", "a").await;
    let job = service.ended(&id).await;
    needs_full(&job, "deletes_expired");
    service.export("full", "a").await;
    let (_, file) = service.export("delta", "a").await;
    assert!(file.rows.is_empty());
}

#[tokio::test]
async fn the_log_keeps_what_a_first_export_under_way_could_not_see() {
    let database = Database::with_users(9).await;
    // It has its snapshot, and no position yet.
    let service = Start::on(&database).with("FAILPOINTS", "worker.staged=hold").service().await;
    let id = service.submit("full", "a").await;
    service.reaches("worker.staged").await;
    database.run("update users set name = 'x', updated_at = '2001-01-01' where id = 3").await;
    let caps = purge::Caps { bytes: 1 << 40, age: Duration::from_secs(3600) };
    purge::purge(&database.pool, &caps).await.unwrap();
    assert_eq!(service.job(&id).await["status"], "processing");
    service.release("worker.staged").await;
    service.ended(&id).await;
    let (_, delta) = service.export("delta", "a").await;
    assert_eq!(delta.ids(), [3]);
}

/// One transaction has written to the partition `two` and waits for the root. `track` holds the root and waits for the
/// other partition.
#[tokio::test]
async fn track_ends_no_transaction_of_a_writer_by_a_deadlock() {
    let schema = "
        create table parts (id int primary key) partition by list (id);
        create table one partition of parts for values in (1); create table two partition of parts for values in (2, 3)";
    let database = Database::new_with(schema).await;
    let first = database.open("insert into one values (1)").await;
    let mut second = database.open("insert into two values (2)").await;
    let parts = Catalog::from_toml("[[dataset]]\nname = \"parts\"\ntable = \"parts\"").unwrap();
    let (pool, parts) = (database.pool.clone(), parts.get("parts").unwrap().clone());
    let track = tokio::spawn(async move { tracking::track(&pool, &parts).await });
    let waits = async |relation: &str| {
        let waits = format!("select pid from pg_locks where not granted and relation = '{relation}'::regclass");
        eventually(relation, || async {
            sqlx::query_scalar::<_, i32>(AssertSqlSafe(waits.clone())).fetch_optional(&database.pool).await.unwrap()
        })
        .await;
    };
    waits("one").await;
    let insert =
        tokio::spawn(
            async move { sqlx::query("insert into parts values (3)").execute(&mut *second).await.map(|_| second) },
        );
    waits("parts").await;
    first.commit().await.unwrap();
    insert.await.unwrap().expect("no deadlock").commit().await.unwrap();
    assert_eq!(track.await.unwrap().unwrap(), tracking::Tracked::Now);
}

/// As a vacuum does. Postgres ends an autovacuum only for a session that waits long enough for that one lock.
#[tokio::test]
async fn track_waits_for_a_vacuumed_partition_alone() {
    let schema = "
        create table parts (id int primary key) partition by list (id);
        create table one partition of parts for values in (1); create table two partition of parts for values in (2)";
    let database = Database::new_with(schema).await;
    let vacuum = database.open("lock table two in share update exclusive mode").await;
    let parts = Catalog::from_toml("[[dataset]]\nname = \"parts\"\ntable = \"parts\"").unwrap();
    let (pool, parts) = (database.pool.clone(), parts.get("parts").unwrap().clone());
    let track = tokio::spawn(async move { tracking::track(&pool, &parts).await });
    eventually("track waits", || async {
        let waits = "select l.pid from pg_locks l where not l.granted and l.relation = 'two'::regclass and l.mode = 'ShareUpdateExclusiveLock'
            and not exists (select from pg_locks o where o.pid = l.pid and o.granted and o.relation in ('parts'::regclass, 'one'::regclass))";
        sqlx::query_scalar::<_, i32>(waits).fetch_optional(&database.pool).await.unwrap()
    })
    .await;
    vacuum.rollback().await.unwrap();
    assert_eq!(track.await.unwrap().unwrap(), tracking::Tracked::Now);
}

#[tokio::test]
async fn a_key_that_changes_while_track_waits_for_its_lock_is_the_one_that_is_kept() {
    let database = Database::new().await;
    database.run("create table parts (id bigint primary key, code text not null unique, name text)").await;
    let another_key = "alter table parts drop constraint parts_pkey; alter table parts add primary key (code)";
    let change = database.open(another_key).await;
    let parts = Catalog::from_toml("[[dataset]]\nname = \"parts\"\ntable = \"parts\"").unwrap();
    let (pool, parts) = (database.pool.clone(), parts.get("parts").unwrap().clone());
    let track = tokio::spawn(async move { tracking::track(&pool, &parts).await });
    eventually("track waits", || async {
        let waits =
            "select pid from pg_locks where mode = 'ShareRowExclusiveLock' and not granted and relation is not null";
        sqlx::query_scalar::<_, i32>(waits).fetch_optional(&database.pool).await.unwrap()
    })
    .await;
    change.commit().await.unwrap();
    track.await.unwrap().unwrap();
    let kept = "select key from cdc_export.tracked where table_name = 'parts'";
    let kept: Vec<String> = sqlx::query_scalar(kept).fetch_one(&database.pool).await.unwrap();
    assert_eq!(kept, ["code"], "as the triggers log it");
}
