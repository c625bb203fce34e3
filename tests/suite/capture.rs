//! Exact change capture: what changed is told by the log, not by the clock.

use std::time::Duration;

use cdc_capture::Caps;
use chrono::Utc;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::catalog::Catalog;
use crate::harness::{Database, Service, Start, ends, eventually, serving_users};

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
        let caps = Caps { bytes: 1 << 40, age: Duration::from_secs(3600), now: Some(Utc::now()) };
        caps.purge(&mut database.pool.acquire().await.unwrap()).await.unwrap();
        database.one::<i64>("select count(*) from cdc_export.change_log").await
    };
    assert_eq!(purged().await, 0, "everybody has seen the first rows");
    // The transaction of `idle` is older than all that follow.
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

const PARTS: &str = "[[dataset]]\nname = \"parts\"\ntable = \"parts\"";

/// Runs a command whose table is busy for longer than a second, beside an application that writes and reads all the
/// time and waits for no lock. Returns its standard error.
async fn too_busy(database: &Database, arguments: &[&str]) -> String {
    let catalog = Catalog::of(PARTS);
    let command = catalog.start(database).with("FAILPOINTS", "capture.wait=time:1000").arguments(arguments).output();
    tokio::pin!(command);
    let mut application = PgConnection::connect_with(&database.options).await.unwrap();
    let write = "set lock_timeout = '20ms'; update parts set name = 'x' where id = 2; select from parts";
    let ended = loop {
        tokio::select! {
            ended = &mut command => break ended,
            written = sqlx::raw_sql(write).execute(&mut application) => written.expect("no lock request waits"),
        };
    };
    ends(ended, 1, "`parts` is too busy: ").1
}

#[tokio::test]
async fn no_statement_waits_for_a_track_or_an_untrack_that_waits_for_an_open_transaction() {
    let table = "create table parts (id int primary key, name text); insert into parts values (2)";
    let database = Database::new_with(table).await;
    let role = database.role().await;
    database.run(&format!("grant select, insert on parts to {role}")).await;
    let options = database.options.clone().username(&role).password("pass").application_name("billing");
    let mut other = PgConnection::connect_with(&options).await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut other).await.unwrap();
    let named = format!("` is too busy: process {pid} of role {role} (application billing)");

    other.execute("begin; insert into parts values (1)").await.unwrap();
    let said = too_busy(&database, &["track", "parts"]).await;
    assert!(said.contains(&named), "{said}");
    other.execute("commit").await.unwrap();
    Catalog::of(PARTS).track(&database, "parts").await;

    // The repair removes the other triggers, which locks out readers.
    database.run("drop trigger cdc_export_u on parts").await;
    other.execute("begin; select from parts").await.unwrap();
    for arguments in [["track", "parts"], ["untrack", "parts"]] {
        let said = too_busy(&database, &arguments).await;
        assert!(said.contains(&named), "{said}");
    }
    other.execute("commit").await.unwrap();
    Catalog::of(PARTS).track(&database, "parts").await;
}

#[tokio::test]
async fn a_prepared_transaction_that_keeps_a_table_from_being_tracked_is_named() {
    let table = "create table parts (id int primary key, name text); insert into parts values (2)";
    let database = Database::new_with(table).await;
    let name = format!("{} 1", database.options.get_database().unwrap());
    database.run(&format!("begin; insert into parts values (1); prepare transaction '{name}'")).await;
    let said = too_busy(&database, &["track", "parts"]).await;
    assert!(said.contains(&format!("is too busy: prepared transaction {name}")), "{said}");
    database.run(&format!("rollback prepared '{name}'")).await;
    Catalog::of(PARTS).track(&database, "parts").await;
}

/// One transaction has written to the partition `two` and waits for the root. `track` holds the root and waits for the
/// other partition.
#[tokio::test]
async fn track_ends_no_transaction_of_a_writer_by_a_deadlock() {
    let schema = "
        create table parts (id int primary key) partition by list (id);
        create table one partition of parts for values in (1); create table two partition of parts for values in (2, 3)";
    let database = Database::new_with(schema).await;
    let name = database.options.get_database().unwrap();
    database.run(&format!("alter database {name} set deadlock_timeout = '4s'")).await;
    let catalog = Catalog::of(PARTS);
    let faults = "capture.looked=hold,capture.limit=time:60000";
    let track = catalog.start(&database).with("FAILPOINTS", faults).arguments(&["track", "parts"]);
    let hold = track.hold("capture.looked");
    let track = tokio::spawn(track.output());
    hold.reached().await;
    let first = database.open("insert into one values (1)").await;
    let mut second = database.open("set local deadlock_timeout = '4s'; insert into two values (2)").await;
    hold.release().await;
    database.waits_for("one").await;
    let insert =
        tokio::spawn(
            async move { sqlx::query("insert into parts values (3)").execute(&mut *second).await.map(|_| second) },
        );
    database.waits_for("parts").await;
    first.commit().await.unwrap();
    insert.await.unwrap().expect("no deadlock").commit().await.unwrap();
    ends(track.await.unwrap(), 0, "");
}

/// As a vacuum does. Postgres ends an autovacuum only for a session that waits long enough for that one lock.
#[tokio::test]
async fn track_waits_for_a_vacuumed_relation_alone() {
    let schema = "
        create table parts (id int primary key) partition by list (id);
        create table one partition of parts for values in (1); create table two partition of parts for values in (2);
        create table plain (id int primary key)";
    let database = Database::new_with(schema).await;
    for (table, vacuumed) in [("parts", "two"), ("plain", "plain")] {
        let vacuum = database.open(&format!("lock table {vacuumed} in share update exclusive mode")).await;
        let catalog = Catalog::of(&PARTS.replace("parts", table));
        let release = async {
            eventually("track waits", || async {
                let waits = format!(
                    "select l.pid from pg_locks l
                     where not l.granted and l.relation = '{vacuumed}'::regclass and l.mode = 'ShareUpdateExclusiveLock'
                       and not exists (select from pg_locks o where o.pid = l.pid and o.granted
                         and o.relation in ('parts'::regclass, 'one'::regclass, 'plain'::regclass))"
                );
                sqlx::query_scalar::<_, i32>(AssertSqlSafe(waits)).fetch_optional(&database.pool).await.unwrap()
            })
            .await;
            vacuum.rollback().await.unwrap();
        };
        tokio::join!(catalog.track(&database, table), release);
    }
}

#[tokio::test]
async fn a_key_that_changes_before_track_locks_the_table_is_the_one_that_is_kept() {
    let table = "create table parts (id bigint primary key, code text not null unique, name text)";
    let database = Database::new_with(table).await;
    let catalog = Catalog::of(PARTS);
    let track = catalog.start(&database).with("FAILPOINTS", "capture.looked=hold").arguments(&["track", "parts"]);
    let hold = track.hold("capture.looked");
    let change = async {
        hold.reached().await;
        let another_key = "alter table parts drop constraint parts_pkey; alter table parts add primary key (code)";
        database.run(another_key).await;
        hold.release().await;
    };
    let (tracked, ()) = tokio::join!(track.output(), change);
    ends(tracked, 0, "");
    let kept: Vec<String> = database.one("select key from cdc_export.tracked where table_name = 'parts'").await;
    assert_eq!(kept, ["code"], "as the triggers log it");
}
