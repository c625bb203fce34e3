//! No lock and no snapshot of an export lasts without a bound: not beside a session that waits for its table, and not
//! when its process is stopped, its folder hangs, or a synchronous standby is dead.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::Connection;

use crate::catalog::{Catalog, ended, post, submit};
use crate::harness::{Database, Start, ends, eventually, until};
use crate::restores::cluster::Cluster;

/// Locks a table as ALTER TABLE does. Returns the time that it waited.
async fn lock(database: &Database, table: &str) -> Duration {
    let begun = Instant::now();
    let lock = format!("set local lock_timeout = '60s'; lock table {table} in access exclusive mode");
    database.open(&lock).await.rollback().await.unwrap();
    begun.elapsed()
}

/// Waits until a reader is in a row that takes a second.
async fn reader_reads(database: &Database) {
    let reads = "select exists (select from pg_stat_activity
                 where datname = current_database() and application_name like '%reader' and wait_event = 'PgSleep')";
    until("the reader reads", async || database.one::<bool>(reads).await).await;
}

#[tokio::test]
async fn an_export_gives_way_to_a_session_that_waits_for_its_table() {
    let tables = "create table orders (k int primary key); insert into orders select generate_series(1, 60);
                  create view slow as select k, pg_sleep(1)::text as nothing from orders";
    let database = Database::empty_with(tables).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"slow\"\ntable = \"slow\"\ncapture = \"none\"\n");
    let service = catalog.start(&database).with("GIVE_WAY_SECONDS", 1).with("WORKERS", 1).service().await;
    let id = &submit(&service, "/exports/full", Some("a"), json!({ "dataset": "slow" })).await;
    for attempt in 0..6 {
        reader_reads(&database).await;
        let waited = lock(&database, "orders").await;
        assert!(waited < Duration::from_secs(8), "{waited:?}");
        if attempt == 5 {
            break;
        }
        let gave_way = async || {
            let job = service.job(id).await;
            (job["status"] == "pending" && job["error"]["code"] == "gave_way").then_some(job)
        };
        let job = eventually("the job waits", gave_way).await;
        assert_eq!(job["attempt"], 0, "{job}");
        let detail = job["error"]["detail"].as_str().unwrap();
        assert!(detail.starts_with("session ") && detail.contains(" of role "), "{detail}");
        assert!(detail.contains("orders"), "{detail}");
        let pause = "select extract(epoch from run_at - clock_timestamp())::float8 from cdc_export.jobs";
        let (pause, expected) = (database.one::<f64>(pause).await, [10.0, 60.0, 300.0, 900.0, 900.0][attempt]);
        assert!(pause > expected - 8.0 && pause <= expected, "{pause} seconds after attempt {attempt}");
        database.run("update cdc_export.jobs set run_at = clock_timestamp() where status = 'pending'").await;
    }
    let job = service.ended(id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("gave_way")), "{job}");
    assert_eq!(service.events("export_gave_way").len(), 5);
    let metrics = service.call("GET", "/metrics", &[]).await.text().await.unwrap();
    assert!(metrics.contains("cdc_export_exports_gave_way_total 6"));
    service.stop().await;
}

#[tokio::test]
async fn a_job_of_several_datasets_that_gives_way_names_the_table_in_the_log_alone() {
    let tables = "create table orders (k int primary key); insert into orders select generate_series(1, 60);
                  create view slow as select k, pg_sleep(1)::text as nothing from orders;
                  create view quick as select k from orders where k < 3";
    let database = Database::empty_with(tables).await;
    let view = |name: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\ncapture = \"none\"\n");
    let catalog = Catalog::of(&(view("slow") + &view("quick")));
    let service = catalog.start(&database).with("GIVE_WAY_SECONDS", 1).with("WORKERS", 1).service().await;
    let id = &submit(&service, "/exports/full", Some("a"), json!({ "datasets": ["slow", "quick"] })).await;
    reader_reads(&database).await;
    lock(&database, "orders").await;
    let gave_way = async || Some(service.job(id).await).filter(|job| job["error"]["code"] == "gave_way");
    let job = eventually("the job waits", gave_way).await.to_string();
    assert!(!job.contains("orders") && !job.contains("of role"), "{job}");
    let line = service.says("export_gave_way", id).await;
    assert!(line["error"].as_str().unwrap().contains("orders"), "{line}");
    service.stop().await;
}

#[tokio::test]
async fn whoever_takes_a_job_over_ends_the_sessions_of_a_stopped_process() {
    let database = Database::with_users(5).await;
    let stopped = Start::on(&database).with("FAILPOINTS", "worker.opened=hold").with("LEASE_SECONDS", 3);
    let stopped = stopped.with("WORKERS", 1).service().await;
    let id = stopped.submit("full", "a").await;
    stopped.reaches("worker.opened").await;
    stopped.signal(Signal::SIGSTOP);
    let heir = Start::on(&database).sharing_output(&stopped).service().await;
    assert_eq!(heir.ended(&id).await["status"], "completed");
    let waited = lock(&database, "users").await;
    assert!(waited < Duration::from_secs(5), "{waited:?}");
    // The server may have ended the leader's by then.
    let is_of_reader = |event: &Value| event["session"].as_str().unwrap().ends_with(" reader");
    assert!(heir.events("session_ended").iter().any(is_of_reader), "{}", heir.log());
    stopped.signal(Signal::SIGCONT);
    stopped.release("worker.opened").await;
    stopped.says("lease_lost", &id).await;
    stopped.stop().await;
    heir.stop().await;
}

#[tokio::test]
async fn an_export_whose_folder_hangs_ends() {
    let database = Database::with_users(5).await;
    let service = Start::on(&database).with("FAILPOINTS", "sink.write=hold,sink.stall=time:1000").service().await;
    let id = service.submit("full", "a").await;
    service.reaches("sink.write").await;
    let waited = lock(&database, "users").await;
    assert!(waited < Duration::from_secs(8), "{waited:?}");
    let failed = async || Some(service.job(&id).await["error"].clone()).filter(|error| error["code"].is_string());
    let error = eventually("the attempt has ended", failed).await;
    assert_eq!(error["code"], "storage_unavailable", "{error}");
    service.release("sink.write").await;
    assert_eq!(service.ended(&id).await["status"], "completed");
    service.stop().await;
}

/// Waits until each session of the server has the changed settings. The server signals all of them before it begins
/// another reload.
async fn reload(database: &Database) {
    let mut conn = database.pool.acquire().await.unwrap();
    for _ in 0..2 {
        let time = "select pg_conf_load_time()::text";
        let before: String = sqlx::query_scalar(time).fetch_one(&mut *conn).await.unwrap();
        database.run("select pg_reload_conf()").await;
        let mut now = before.clone();
        while now == before {
            now = sqlx::query_scalar(time).fetch_one(&mut *conn).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_dead_synchronous_standby_holds_no_lock_and_nothing_is_handed_out() {
    let mut cluster = Cluster::new().await;
    let database = cluster.database();
    let tables = "create table orders (id int primary key); insert into orders values (1);
                  create table later (id int primary key)";
    database.run(tables).await;
    let catalog = Catalog::of_tables(&["orders", "later"]);
    catalog.track(&database, "orders").await;
    for consumer in [Some("a"), None] {
        let service =
            catalog.start(&database).with("FAILPOINTS", "worker.staged=hold,service.call=time:5000").service().await;
        let body = json!({ "exportType": "full", "dataset": "orders" });
        let id = &submit(&service, "/exports", consumer, body.clone()).await;
        service.reaches("worker.staged").await;
        database.run("alter system set synchronous_standby_names = 'nobody'").await;
        reload(&database).await;
        service.release("worker.staged").await;
        let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
        until("the publisher waits", async || database.one::<i64>(waits).await > 0).await;
        let unpublished = "select count(*) from cdc_export.jobs where status = 'committed'";
        assert_eq!(database.one::<i64>(unpublished).await, 1, "it is committed");
        let lock = "set local lock_timeout = '5s'; lock table orders in access exclusive mode";
        database.open(lock).await.rollback().await.unwrap();
        assert!(service.files().iter().all(|file| file.starts_with('.')), "{:?}", service.files());
        let ready = service.call("GET", "/health/ready", &[]).await;
        let (status, ready): (_, Value) = (ready.status(), ready.json().await.unwrap());
        let late = post(&service, "/exports", Some("late"), &body).await;
        let (refused, late): (_, Value) = (late.status(), late.json().await.unwrap());
        assert_eq!((status.as_u16(), refused.as_u16()), (503, 503), "{ready} {late}");
        for why in [&ready["checks"]["postgres"], &late["detail"]] {
            assert!(why.as_str().unwrap().contains("synchronous_standby_names"), "{why}");
        }
        let free = async {
            until("`track` waits, too", async || database.one::<i64>(waits).await > 1).await;
            database.open(&lock.replace("orders", "later")).await.rollback().await.unwrap();
            database.run("alter system reset synchronous_standby_names").await;
            database.run("select pg_reload_conf()").await;
        };
        let (tracked, ()) = tokio::join!(catalog.command(&database, &["track", "later"]), free);
        ends(tracked, 0, "");
        assert_eq!(service.completes(id).await["rowsExported"], 1);
        let open = "select count(*) from exports where status in ('pending', 'processing') or published_at is null";
        until("the refused request's job has ended, too", async || database.one::<i64>(open).await == 0).await;
        service.stop().await;
    }
    cluster.stop().await;
}

/// The lock table of this server is sure to have 3,264 places, 3,680 since Postgres 18. A plan of the whole table needs
/// one for each partition and index.
#[tokio::test]
async fn an_export_reads_a_thousand_partitions_in_a_small_lock_table_and_is_refused_at_two_thousand() {
    let mut cluster = Cluster::with(&["max_connections = 80"]).await;
    let database = cluster.database();
    database.run("create table parts (k int primary key, a int, b int) partition by range (k)").await;
    database.run("create index on parts (a); create index on parts (b)").await;
    database.run("create table others (k int primary key) partition by range (k)").await;
    let make = |table: &str, from: i32, to: i32| {
        format!(
            "do $$ begin
               for n in {from}..{to} - 1 loop
                 execute format('create table {table}_%s partition of {table} for values from (%s) to (%s)', n, n, n + 1);
                 if n % 50 = 0 then commit; end if;
               end loop;
             end $$"
        )
    };
    database.run(&make("parts", 0, 1000)).await;
    database.run(&make("others", 0, 300)).await;
    database.run("insert into parts select n, n, n from generate_series(0, 999) n").await;
    let catalog = Catalog::of("[[dataset]]\nname = \"parts\"\ntable = \"parts\"\ncapture = \"none\"\n");
    let service = catalog.start(&database).with("WORKERS", 1).service().await;
    let application = async {
        let mut statements = 0;
        while !service.get("/exports").await["items"][0]["finishedAt"].is_string() {
            let _: i64 = database.one("select count(*) from others").await;
            statements += 1;
        }
        statements
    };
    let full = || ended(&service, "/exports/full", Some("a"), json!({ "dataset": "parts" }));
    let (job, statements) = tokio::join!(full(), application);
    assert!(statements > 0);
    // With partitions that came since the position, too.
    database.run(&make("parts", 1000, 1050)).await;
    for job in [job, full().await] {
        assert_eq!((&job["status"], &job["rowsExported"]), (&json!("completed"), &json!(1000)), "{job}");
    }
    database.run(&make("parts", 1050, 2000)).await;
    let job = full().await;
    assert_eq!(job["error"]["code"], "too_many_locks", "{job}");
    service.stop().await;
    cluster.stop().await;
}

/// Postgres makes half of the lock table at its start. The rest of its memory may have gone to entries of holders.
#[tokio::test]
async fn an_export_counts_on_half_of_the_lock_table_alone() {
    let mut cluster = Cluster::with(&["max_locks_per_transaction = 10", "max_connections = 25"]).await;
    let database = cluster.database();
    database.run("create table parts (k int primary key) partition by range (k)").await;
    let make = "do $$ begin
                  for n in 0..174 loop
                    execute format('create table parts_%s partition of parts for values from (%s) to (%s)', n, n, n + 1);
                    commit;
                  end loop;
                end $$";
    database.run(make).await;
    let share = "do $$ begin
                   perform pg_advisory_lock_shared(n) from generate_series(1, 200) n;
                 exception when out_of_memory then null;
                 end $$";
    // Together more than the table has.
    let mut sharing = Vec::new();
    for _ in 0..12 {
        let mut session = sqlx::PgConnection::connect_with(&database.options).await.unwrap();
        sqlx::raw_sql(share).execute(&mut session).await.unwrap();
        sharing.push(session);
    }
    for session in sharing {
        session.close().await.unwrap();
    }
    let catalog = Catalog::of("[[dataset]]\nname = \"parts\"\ntable = \"parts\"\ncapture = \"none\"\n");
    let service = catalog.start(&database).with("WORKERS", 1).service().await;
    let others = database.open("select pg_advisory_xact_lock(n) from generate_series(1, 100) n").await;
    let full = || ended(&service, "/exports/full", Some("a"), json!({ "dataset": "parts" }));
    let refused = full().await;
    assert_eq!(refused["error"]["code"], "too_many_locks", "{refused}");
    others.rollback().await.unwrap();
    service.stop().await;
    cluster.stop().await;
}
