//! The guard of continuity, the triggers and the purge: where exactness can't be kept an export says so, and loses
//! nothing.

use std::process::Stdio;
use std::time::Duration;

use cdc_capture::Source;
use pg_session::failure::chain;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::continuity::{command, exported, full_heals, log_becomes, operations, passes, position, refused, track};
use crate::harness::{Csv, Database, Start, ends, eventually, server_lacks, until};
use crate::programs::program;
use crate::restores::cluster::Cluster;

#[tokio::test]
async fn a_start_puts_missing_triggers_back_on_our_own_table() {
    let (database, service) = exported(19, &["a"]).await;
    database.run("drop trigger cdc_export_u on users; update users set name = 'unseen' where id = 1").await;
    refused(&database, &service, "incremental", "a", "trigger_missing").await;
    service.stop().await;

    let service = Start::on(&database).service().await;
    assert_eq!(service.events("table_tracked").len(), 1);
    refused(&database, &service, "incremental", "a", "trigger_changed").await;
    refused(&database, &service, "delta", "a", "trigger_changed").await;
    full_heals(&database, &service, "a", "trigger_changed").await;
    database.run("update users set name = 'seen' where id = 1").await;
    assert_eq!(passes(&service, "incremental", "a", None).await.1.ids(), [1]);
    assert_eq!(database.one::<i64>("select count(*) from pg_proc where pronamespace = 'cdc_export'::regnamespace and proname like 'capture%'").await, 5);
    service.stop().await;

    // A start leaves existing triggers as they are.
    let service = Start::on(&database).service().await;
    assert_eq!(service.events("table_tracked").len(), 0);
    passes(&service, "delta", "a", None).await;
}

#[tokio::test]
async fn a_truncate_is_exact_for_an_incremental_and_refused_for_a_delta() {
    let (database, service) = exported(19, &["a", "b"]).await;
    database.run("truncate users; update users set name = 'nobody'").await;
    database.add_users(3, 4).await;
    for export in 1..=2 {
        let (_, file) = passes(&service, "incremental", "a", Some("truncated")).await;
        assert_eq!(file.ids(), if export == 1 { vec![3, 4] } else { vec![] }, "nothing twice");
        refused(&database, &service, "delta", "a", "truncated").await;
    }
    refused(&database, &service, "delta", "b", "truncated").await;
    full_heals(&database, &service, "a", "truncated").await;
    assert_eq!(
        passes(&service, "incremental", "b", Some("truncated")).await.1.ids(),
        [3, 4],
        "consumers don't see each other"
    );
}

/// The lane's history is read in a statement before the one that takes the snapshot.
#[tokio::test]
async fn an_export_begins_anew_if_its_position_goes_right_before_its_snapshot() {
    let (database, service) = exported(5, &["a"]).await;
    let held = database.open("lock table cdc_export.mask_secret").await;
    let job = service.submit("delta", "a").await;
    database.waits_for("cdc_export.mask_secret").await;
    assert_eq!(service.call("DELETE", "/exports/watermark", &[("X-Consumer-ID", "a")]).await.status(), 204);
    held.rollback().await.unwrap();
    let job = service.completes(&job).await;
    assert_eq!(service.manifest(&job).await["export"]["previous"], json!(null));
}

#[tokio::test]
async fn a_truncate_waits_for_an_export_that_has_its_snapshot() {
    let database = Database::with_users(19).await;
    let service = Start::on(&database).with("FAILPOINTS", "worker.opened=hold").service().await;
    let job = service.submit("full", "a").await;
    service.reaches("worker.opened").await;
    let truncate = tokio::spawn({
        let pool = database.pool.clone();
        async move { pool.execute("truncate users").await.unwrap() }
    });
    database.waits_for("users").await;
    assert_eq!(service.job(&job).await["status"], "processing");
    service.release("worker.opened").await;
    truncate.await.unwrap();
    assert_eq!(
        database.one::<String>("select status from cdc_export.exports").await,
        "completed",
        "it waited to the commit"
    );
    assert_eq!(Csv::read(&service.path(&service.ended(&job).await)).rows.len(), 18);
    refused(&database, &service, "delta", "a", "truncated").await;
}

#[tokio::test]
async fn a_time_set_by_hand_is_obeyed_once_and_the_log_from_then_on() {
    let (database, service) = exported(19, &["forward", "forward-delta", "back", "back-delta"]).await;
    let changes = "insert into watermarks (consumer_id, last_exported_at, updated_at) values
                     ('planted', '2026-01-01 00:15:00+00', now()), ('planted-delta', '2026-01-01 00:15:00+00', now());
                   update watermarks set last_exported_at = '2026-02-01' where consumer_id like 'forward%';
                   update watermarks set last_exported_at = '2026-01-01 00:16:00+00' where consumer_id like 'back%';
                   delete from users where id = 3;
                   update users set name = 'late' where id = 4;
                   update users set is_deleted = true where id = 5;
                   update users set updated_at = '2026-02-02' where id = 6;
                   update users set updated_at = 'infinity' where id = 7;
                   update users set is_deleted = true, updated_at = '2026-02-03' where id = 8";
    database.run(changes).await;
    // The stated rule alone: what is due by the log isn't looked at, and infinity is above every time.
    for (consumer, word, live) in [
        ("planted", "no_snapshot", vec![6, 7, 16, 17, 18, 19]),
        ("forward", "watermark_edited", vec![6, 7]),
        // These are changed rows, and rows by their time. A row of infinity comes only by the log.
        ("back", "rewound", vec![4, 6, 7, 17, 18, 19]),
    ] {
        assert_eq!(passes(&service, "incremental", consumer, Some(word)).await.1.ids(), live, "{word}");
    }
    let sorted = |mut rows: Vec<(&'static str, &'static str)>| {
        rows.sort_unstable();
        rows
    };
    for (consumer, word, rows) in [
        (
            "planted-delta",
            "no_snapshot",
            vec![
                ("DELETE", "8"),
                ("UPDATE", "6"),
                ("UPDATE", "7"),
                ("INSERT", "16"),
                ("INSERT", "17"),
                ("INSERT", "18"),
                ("INSERT", "19"),
            ],
        ),
        ("forward-delta", "watermark_edited", vec![("DELETE", "8"), ("UPDATE", "6"), ("UPDATE", "7")]),
        (
            "back-delta",
            "rewound",
            vec![
                ("DELETE", "3"),
                ("DELETE", "5"),
                ("DELETE", "8"),
                ("INSERT", "4"),
                ("UPDATE", "6"),
                ("UPDATE", "7"),
                ("INSERT", "17"),
                ("INSERT", "18"),
                ("INSERT", "19"),
            ],
        ),
    ] {
        assert_eq!(operations(&passes(&service, "delta", consumer, Some(word)).await.1), sorted(rows), "{word}");
    }
    // The deletions of an incremental export that was set back are still due; by hand they were waived.
    let due = [
        ("back", vec![("DELETE", "3"), ("DELETE", "5"), ("DELETE", "8")]),
        ("forward", vec![("DELETE", "8")]),
        ("planted", vec![("DELETE", "8")]),
    ];
    for (consumer, deletions) in due {
        assert_eq!(operations(&passes(&service, "delta", consumer, None).await.1), deletions, "{consumer}");
    }
    database.run("update users set name = 'later' where id = 9; delete from users where id = 10").await;
    for consumer in ["planted", "forward", "back"] {
        assert_eq!(passes(&service, "incremental", consumer, None).await.1.ids(), [9], "{consumer}");
        let (_, delta) = passes(&service, "delta", &format!("{consumer}-delta"), None).await;
        assert_eq!(operations(&delta), [("DELETE", "10"), ("INSERT", "9")], "{consumer}");
    }
}

#[tokio::test]
async fn a_position_without_a_time_is_one_all_the_same() {
    let database = Database::with_users(3).await;
    database.run("update users set updated_at = 'infinity'").await;
    let service = Start::on(&database).service().await;
    let (job, file) = passes(&service, "full", "a", None).await;
    assert_eq!((file.ids(), &job["watermarkTo"]), (vec![1, 2, 3], &json!(null)));
    assert_eq!(service.watermark("a").await, None);
    assert!(position(&database, "a").await.is_some());
    // A hard delete is found by nothing but the snapshot, and nothing else comes again.
    database.run("delete from users where id = 2").await;
    let (_, delta) = passes(&service, "delta", "a", None).await;
    assert_eq!(operations(&delta), [("DELETE", "2")]);

    database.run("update watermarks set last_exported_at = '2026-01-01 00:01:30+00'; update users set updated_at = '2026-01-01 00:01:00+00' where id = 1").await;
    let (_, file) = passes(&service, "incremental", "a", Some("watermark_edited")).await;
    assert_eq!(file.ids(), [3], "by the time alone");
    database.run("update users set updated_at = '2026-01-01 00:01:10+00' where id = 1").await;
    assert_eq!(passes(&service, "incremental", "a", None).await.1.ids(), [1]);
    // Taken away, it is set back as far as can be.
    database.run("update watermarks set last_exported_at = null").await;
    assert_eq!(passes(&service, "incremental", "a", Some("rewound")).await.1.ids(), [1, 3]);
}

#[tokio::test]
async fn a_position_that_is_too_old_is_given_up_deletions_first() {
    let (database, service) = exported(19, &["a", "b"]).await;
    service.stop().await;
    // At its start a service purges at once.
    let start = || Start::on(&database).with("CHANGE_LOG_MAX_AGE", "1d");
    let make_older = "update watermarks set saved_at = saved_at - interval '25 hours',
                        deletions_saved_at = deletions_saved_at - interval '25 hours'";
    database.run("delete from users where id = 3; update users set name = 'x' where id <= 11").await;
    database.run(make_older).await;

    let service = start().service().await;
    until("the deletions are given up", async || {
        database.one::<i64>("select count(*) from watermarks where log_lost = 'deletions'").await == 2
    })
    .await;
    until("the log says so", async || service.events("position_given_up").len() == 2).await;
    assert_eq!(service.events("position_given_up")[0]["limit"], "age");
    refused(&database, &service, "delta", "a", "deletes_expired").await;
    let changed = [1, 2, 4, 5, 6, 7, 8, 9, 11];
    assert_eq!(passes(&service, "incremental", "a", Some("deletes_expired")).await.1.ids(), changed, "exact as ever");
    assert!(passes(&service, "incremental", "a", Some("deletes_expired")).await.1.rows.is_empty());
    refused(&database, &service, "delta", "a", "deletes_expired").await;
    // The rows of the first inserts may have been purged or not.
    let needed = "select count(*) from cdc_export.change_log where operation in ('D', 'U')";
    assert_eq!(database.one::<i64>(needed).await, 11, "b still needs them");
    service.stop().await;

    database.run("update users set name = name || '!' where id <= 11").await;
    database.run(make_older).await;
    let service = start().service().await;
    until("b is given up", async || {
        database.one::<i64>("select count(*) from watermarks where log_lost = 'all'").await == 1
    })
    .await;
    refused(&database, &service, "incremental", "b", "log_expired").await;
    refused(&database, &service, "delta", "b", "log_expired").await;
    assert_eq!(passes(&service, "incremental", "a", Some("deletes_expired")).await.1.ids(), changed);
    full_heals(&database, &service, "a", "deletes_expired").await;
    full_heals(&database, &service, "b", "log_expired").await;
}

#[tokio::test]
async fn a_consumer_that_never_takes_deletions_does_not_hold_the_log() {
    let (database, service) = exported(19, &["a"]).await;
    service.stop().await;
    let start = || Start::on(&database).with("CHANGE_LOG_MAX_BYTES", "2KiB");
    for round in 1..=4 {
        let service = start().service().await;
        for _ in 0..3 {
            database.run("update users set name = name || '!'").await;
        }
        let (job, _) = service.export("incremental", "a").await;
        assert_eq!(job["rowsExported"], 18, "round {round}: {job}");
    }
    let service = start().service().await;
    log_becomes(&database, 0).await;
    passes(&service, "incremental", "a", Some("deletes_expired")).await;
}

/// The lines that docs/internals/CAPTURE.md states.
#[tokio::test]
async fn what_a_position_remembers_has_the_documented_form() {
    let (database, _service) = exported(19, &["a"]).await;
    let form = r#"v1\nkey=null\nfilter=null\ndeleted="is_deleted"\ncapture="triggers"\n"#;
    assert!(database.one::<bool>(&format!("select definition_hash = md5(E'{form}') from watermarks")).await);
    let columns = [
        ("id", "bigint"),
        ("name", "character varying(255)"),
        ("email", "character varying(255)"),
        ("created_at", "timestamp with time zone"),
        ("updated_at", "timestamp with time zone"),
        ("is_deleted", "boolean"),
    ];
    let form: String = columns.iter().map(|(name, type_name)| format!(r#"["{name}","{type_name}"]\n"#)).collect();
    assert!(database.one::<bool>(&format!("select columns_hash = md5(E'v1\\n{form}') from cdc_export.exports")).await);
}

#[tokio::test]
async fn what_is_saved_in_an_unknown_form_counts_as_a_change() {
    let (database, service) = exported(19, &["a", "other"]).await;
    let statements = r#"update watermarks set definition_hash = md5('v2 deleted="is_deleted"') where consumer_id = 'other';
           update cdc_export.exports set columns_hash = md5('v2 id bigint');
           update users set name = 'x' where id = 1"#;
    database.run(statements).await;
    let (job, file) = passes(&service, "incremental", "a", None).await;
    assert_eq!((file.ids(), &job["schemaChanged"]), (vec![1], &json!(true)), "{job}");
    refused(&database, &service, "incremental", "other", "dataset_changed").await;
    let (job, _) = passes(&service, "delta", "a", None).await;
    assert_eq!(job["schemaChanged"], false, "the known form is saved with the export before");
}

#[tokio::test]
async fn a_rewritten_table_is_named_and_fails_nothing() {
    let (database, service) = exported(19, &["a"]).await;
    database.run("vacuum full users").await;
    database.run("update users set name = 'x' where id = 1").await;
    let (job, file) = passes(&service, "incremental", "a", None).await;
    assert_eq!((&job["tableRewritten"], file.ids()), (&json!(true), vec![1]));
    let (job, _) = passes(&service, "delta", "a", None).await;
    assert_eq!(job["tableRewritten"], false, "once");
    // A new column shows by itself, whether it rewrites the table or not.
    let statements =
        "alter table users add column note text; alter table users add column code uuid default gen_random_uuid()";
    database.run(statements).await;
    let (job, _) = passes(&service, "incremental", "a", None).await;
    assert_eq!(job["tableRewritten"], false);
}

/// Counts the triggers and functions that capture changes.
const OF_THE_CAPTURE: &str = "select count(*) from (select oid from pg_trigger where tgname like 'cdc%'
  union all select oid from pg_proc where proname like 'capture%') x";

/// A `users` table that was there before the service.
const EXTERNAL_USERS: &str = "create table users (id bigserial primary key, name varchar(255) not null, email varchar(255) not null unique,
    created_at timestamptz not null, updated_at timestamptz not null, is_deleted boolean not null default false, born date not null);
  insert into users (name, email, created_at, updated_at, born)
  select 'User ' || n, 'user' || n, '2026-01-01', '2026-01-02', '2000-01-01' from generate_series(1, 9) n";

#[tokio::test]
async fn a_table_that_somebody_brought_is_exported_from_track_to_untrack() {
    let database = Database::empty_with(EXTERNAL_USERS).await;
    track(&database).await;
    track(&database).await;
    let service = Start::on(&database).service().await;
    passes(&service, "full", "a", None).await;
    let statements =
        "begin; set local session_replication_role = replica; update users set name = 'x' where id = 1; commit;
             delete from users where id = 2; update users set id = 30 where id = 3";
    database.run(statements).await;
    let (_, delta) = passes(&service, "delta", "a", None).await;
    assert_eq!(operations(&delta), [("DELETE", "2"), ("DELETE", "3"), ("UPDATE", "1"), ("UPDATE", "30")]);
    assert_eq!(service.call("DELETE", "/users/1", &[]).await.status(), 404);

    ends(command(&database, &["untrack", "users"]).await, 0, "");
    assert_eq!(database.one::<i64>(OF_THE_CAPTURE).await, 0);
    service.refuses("POST", "/exports/full", &[("X-Consumer-ID", "a")], 409, "not_tracked").await;
    service.stop().await;
    // A start leaves what isn't ours as it is; tracked again, the position is from before.
    Start::on(&database).service().await.stop().await;
    assert_eq!(database.one::<i64>(OF_THE_CAPTURE).await, 0);
    track(&database).await;
    let service = Start::on(&database).service().await;
    refused(&database, &service, "incremental", "a", "trigger_changed").await;
    full_heals(&database, &service, "a", "trigger_changed").await;
}

#[tokio::test]
async fn track_refuses_in_one_line_what_it_cannot_capture() {
    const COLUMNS: &str = "name text, email text, created_at timestamptz, updated_at timestamptz, is_deleted bool";
    let table = |key: &str| format!("create table users ({key}, {COLUMNS})");
    let database = Database::empty().await;
    let name = database.options.get_database().unwrap();
    let mut first = PgConnection::connect_with(&database.options).await.unwrap();
    first.execute(AssertSqlSafe(format!("alter database {name} set search_path = s, public"))).await.unwrap();
    // The service's own tables, and no `users`.
    track(&database).await;
    database.run("drop table users; truncate cdc_export.tracked").await;
    for (made, says) in [
        (String::new(), "no table `users`"),
        (table("id bigint"), "no primary key"),
        (table("id bigint, org bigint, primary key (org, id)"), "without the key's `org`"),
        (table("uid bigint primary key, id bigint"), "without the key's `uid`"),
        (
            table("id bigint primary key").replace("updated_at timestamptz", "updated_at date"),
            "a timestamptz or a timestamp is expected",
        ),
        (
            table("id bigint primary key").replace("is_deleted bool", "is_deleted text"),
            "a boolean or a time is expected",
        ),
        ("create table users (id bigint primary key, name text)".to_owned(), "there is no column `email`"),
        (
            format!(
                "{}; alter table users rename to base; create view users as select * from base",
                table("id bigint primary key")
            ),
            "is a view",
        ),
        (
            format!(
                "{}; alter table users rename to base; create materialized view users as select * from base",
                table("id bigint primary key")
            ),
            "is a materialized view",
        ),
        (
            format!(
                "create extension file_fdw; create server files foreign data wrapper file_fdw;
                 create foreign table users (id bigint, {COLUMNS}) server files options (filename '/dev/null')"
            ),
            "is a foreign table",
        ),
        (
            format!(
                "create table whole (id bigint primary key, {COLUMNS}) partition by range (id);
                 create table users partition of whole for values from (0) to (9)"
            ),
            "name `s.whole`",
        ),
        (table("id bigint primary key").replace("create table", "create unlogged table"), "is an unlogged table"),
        (
            format!("{}; create table kid () inherits (users)", table("id bigint primary key")),
            "is a table from which others inherit",
        ),
        (
            format!("create table base ({COLUMNS}); create table users (id bigint primary key) inherits (base)"),
            "inherits",
        ),
    ] {
        database.run(&format!("create schema s; {made}")).await;
        let (code, _, errors) = command(&database, &["track", "users"]).await;
        assert_eq!(code, 1, "{made}: {errors}");
        let line = errors.strip_suffix('\n').unwrap();
        assert!(line.starts_with("cdc-export: ") && !line.contains('\n') && line.contains(says), "{made}: {errors}");
        let triggers = "select count(*) from pg_trigger where tgname like 'cdc\\_export\\_%'";
        assert_eq!(database.one::<i64>(triggers).await, 0);
        assert_eq!(database.one::<i64>("select count(*) from cdc_export.tracked").await, 0);
        database.run("drop schema s cascade; drop extension if exists file_fdw cascade").await;
    }
}

#[tokio::test]
async fn a_partitioned_table_is_exact_through_its_parent_and_directly() {
    let schema =
        "create table users (id bigint primary key, name text, email text, created_at timestamptz default '2026-01-01',
               updated_at timestamptz default '2026-01-02', is_deleted bool default false) partition by range (id);
             create table low partition of users for values from (0) to (100);
             create table high partition of users for values from (100) to (200) partition by range (id);
             create table high_low partition of high for values from (100) to (150);
             insert into users (id) select generate_series(1, 9)";
    let database = Database::empty_with(schema).await;
    track(&database).await;
    let service = Start::on(&database).service().await;
    passes(&service, "full", "a", None).await;
    let changes = "
        update users set name = 'parent' where id = 1; update low set name = 'direct' where id = 2;
        delete from low where id = 3; delete from users where id = 4;
        insert into high_low (id) values (101); insert into users (id) values (102); insert into high (id) values (103);
        update users set id = 104 where id = 5; update users set id = 7 where id = 102 and false;
        begin; set local session_replication_role = replica; update low set name = 'replica' where id = 6; commit";
    database.run(changes).await;
    let (_, delta) = passes(&service, "delta", "a", None).await;
    let mut expected = vec![
        ("UPDATE", "1"),
        ("UPDATE", "2"),
        ("DELETE", "3"),
        ("DELETE", "4"),
        ("DELETE", "5"),
        ("UPDATE", "6"),
        ("UPDATE", "101"),
        ("UPDATE", "102"),
        ("UPDATE", "103"),
        ("UPDATE", "104"),
    ];
    expected.sort_unstable();
    assert_eq!(operations(&delta), expected);

    database.run("delete from users").await;
    passes(&service, "delta", "a", None).await;
    for partition in ["high_low", "high", "low", "users"] {
        database.run(&format!("truncate {partition}; insert into users (id) values (1)")).await;
        refused(&database, &service, "delta", "a", "truncated").await;
        assert_eq!(passes(&service, "incremental", "a", Some("truncated")).await.1.ids(), [1], "{partition}");
        full_heals(&database, &service, "a", "truncated").await;
        database.run("delete from users").await;
        passes(&service, "delta", "a", None).await;
    }
}

#[tokio::test]
async fn children_that_come_later_fail_each_export_until_they_are_gone() {
    let (database, service) = exported(9, &["a"]).await;
    database.run("create table kid () inherits (users); insert into kid select * from users where id = 1").await;
    for export_type in ["full", "incremental", "delta"] {
        let id = service.submit(export_type, "a").await;
        let job = service.ended(&id).await;
        assert_eq!(job["error"]["code"], "dataset_mismatch", "{job}");
        assert!(job["error"]["detail"].as_str().unwrap().contains("capture = \"none\""), "{job}");
    }
    database.run("alter table kid no inherit users").await;
    passes(&service, "incremental", "a", None).await;
}

#[tokio::test]
async fn a_publication_for_all_tables_does_not_stop_the_purge() {
    let database = Database::new().await;
    // As Debezium makes one by default. Postgres then refuses to delete rows of a table without an identity.
    database.run("create publication everything for all tables").await;
    let _service = Start::on(&database).service().await;
    database.add_users(1, 9).await;
    log_becomes(&database, 0).await;
    let without_identity = "select coalesce(string_agg(c.oid::regclass::text, ' '), '') from pg_class c
         where c.relkind = 'r' and (c.relnamespace = 'cdc_export'::regnamespace or c.relname in ('watermarks', 'users'))
           and (c.relreplident = 'n' or c.relreplident = 'd' and not exists (
             select from pg_index i where i.indrelid = c.oid and i.indisprimary and i.indimmediate))
           and c.relnamespace <> 'pg_catalog'::regnamespace";
    assert_eq!(database.one::<String>(without_identity).await, "");
}

#[tokio::test]
async fn the_log_is_kept_for_a_first_export_that_runs() {
    let database = Database::with_users(19).await;
    let service = Start::on(&database).with("FAILPOINTS", "worker.opened=hold").service().await;
    let job = service.submit("full", "a").await;
    service.reaches("worker.opened").await;
    database.run("update users set name = 'after' where id in (1, 2); delete from users where id = 3").await;
    // It purges what was before the export, and in the same statement leaves what came after.
    let _other = Start::on(&database).service().await;
    log_becomes(&database, 3).await;
    assert_eq!(service.job(&job).await["status"], "processing");
    service.release("worker.opened").await;
    assert_eq!(service.ended(&job).await["rowsExported"], 18);
    let (_, delta) = passes(&service, "delta", "a", None).await;
    assert_eq!(operations(&delta), [("DELETE", "3"), ("INSERT", "1"), ("INSERT", "2")]);
}

#[tokio::test]
async fn a_standby_is_refused_in_one_line() {
    if server_lacks("pg_basebackup").await {
        return;
    }
    let mut cluster = Cluster::new().await;
    let options = cluster.database().options;
    // A migrated one, so that nothing but its being a standby is in the way.
    Start::on(&cluster.database()).service().await.stop().await;
    cluster.copy_hot().await;
    let copy = cluster.copy();
    std::fs::write(copy.join("standby.signal"), "").unwrap();
    let mut server = program(&options, "postgres", &copy).await;
    let sockets = copy.to_str().unwrap();
    let settings = format!("unix_socket_directories={sockets}");
    server
        .args(["-D", sockets, "-c", &settings, "-c", "listen_addresses="])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut server = server.spawn().unwrap();

    let standby = Database::at(options.socket(&copy));
    eventually("the standby answers", || async { PgConnection::connect_with(&standby.options).await.ok() }).await;
    for arguments in [&[][..], &["track", "users"]] {
        let (code, _, errors) = command(&standby, arguments).await;
        assert_eq!(code, 1);
        let line = errors.strip_suffix('\n').unwrap();
        assert!(line.starts_with("cdc-export: DATABASE_URL: ") && !line.contains('\n'), "{errors}");
        assert!(line.ends_with(": this Postgres is a standby: use its primary"), "{errors}");
    }
    // A primary that became a standby.
    let source = Source::new(standby.options.clone(), standby.pool.clone(), 1);
    let refused = source.connections(Duration::from_secs(60)).await.err().unwrap();
    assert!(matches!(&refused, cdc_capture::Error::Unavailable(_)), "it is tried again");
    assert!(chain(&refused).contains("this Postgres is a standby"), "{}", chain(&refused));
    let pid = nix::unistd::Pid::from_raw(server.id().unwrap().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    server.wait().await.unwrap();
    cluster.stop().await;
}
