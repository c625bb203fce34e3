//! A server that is replaced by another one, and sessions that can't write: none is used, and health checks say why.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use tokio::process::Child;

use crate::apply::pair::Pair;
use crate::harness::{Database, PROMPT, Service, Start, ends, eventually, server_lacks, until};
use crate::keys;
use crate::metrics::Scrape;
use crate::network::{Proxy, url};
use crate::programs::program;
use crate::restores::cluster::Cluster;

/// The longest time from the moment when the database can be written to the answer of a request.
const RECOVERY: Duration = Duration::from_secs(10);

/// A server that recovers from a copy of a cluster, and takes no writes until it is promoted.
struct Standby {
    process: Child,
    options: PgConnectOptions,
}

impl Standby {
    async fn of(cluster: &Cluster) -> Standby {
        cluster.copy_hot().await;
        let (copy, options) = (cluster.copy(), cluster.database().options);
        std::fs::write(copy.join("standby.signal"), "").unwrap();
        let folder = copy.to_str().unwrap();
        let settings = format!("unix_socket_directories={folder}");
        let mut server = program(&options, "postgres", &copy).await;
        server.args(["-D", folder, "-c", &settings, "-c", "listen_addresses="]);
        let process = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let standby = Standby { process, options: options.socket(&copy) };
        until("the standby answers", async || {
            let found = sqlx::query_scalar::<_, bool>("select pg_is_in_recovery()");
            found.fetch_one(&Database::at(standby.options.clone()).pool).await.is_ok()
        })
        .await;
        standby
    }

    async fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().unwrap().cast_signed());
        nix::sys::signal::kill(pid, Signal::SIGINT).unwrap();
        self.process.wait().await.unwrap();
    }
}

/// Waits until health checks give this reason, and all calls are refused.
async fn refuses_for(service: &Service, reason: &str) {
    let told = format!("the database is not available: {reason}");
    until(reason, async || postgres_check(service, "/health").await == (503, told.clone())).await;
    assert_eq!(postgres_check(service, "/health/ready").await, (503, told));
    let answer = service.call("POST", "/exports/full", &[("X-Consumer-ID", "b")]).await;
    assert_eq!(answer.status(), 503);
    assert_eq!(Scrape::of(service).await.count("cdc_export_database_up", &[]), 0);
}

async fn postgres_check(service: &Service, path: &str) -> (u16, String) {
    let answer = service.call("GET", path, &[]).await;
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    (status, body["checks"]["postgres"].as_str().unwrap().to_owned())
}

/// Waits until an export can be requested, which must be soon, and until it is completed.
async fn takes_requests_again(service: &Service, consumer: &str) {
    let begun = Instant::now();
    let job = eventually("an export is requested", async || {
        let answer = service.call("POST", "/exports/full", &[("X-Consumer-ID", consumer)]).await;
        (answer.status() == 202).then_some(answer)
    })
    .await;
    assert!(begun.elapsed() < RECOVERY, "{:?}", begun.elapsed());
    let job: Value = job.json().await.unwrap();
    service.completes(job["jobId"].as_str().unwrap()).await;
    assert_eq!(postgres_check(service, "/health/ready").await, (200, "ok".to_owned()));
}

#[tokio::test]
async fn after_a_failover_no_session_of_the_standby_is_left_in_use() {
    if server_lacks("pg_basebackup").await {
        return;
    }
    let mut cluster = Cluster::new().await;
    let database = cluster.database();
    let proxy = Proxy::to(&database.options).await;
    let start = Start::plain().with("DATABASE_URL", url(&database, &proxy)).with("FAILPOINTS", PROMPT);
    let service = start.service().await;
    service.export("full", "a").await;
    let standby = Standby::of(&cluster).await;

    // The address leads to the standby for a while, and back. The sessions of the standby stay open.
    cluster.stop().await;
    proxy.server.send_replace(standby.options.clone());
    refuses_for(&service, "read-only").await;
    cluster.start().await;
    proxy.server.send_replace(cluster.database().options);
    takes_requests_again(&service, "b").await;

    // Again, and the standby becomes the primary.
    cluster.stop().await;
    proxy.server.send_replace(standby.options.clone());
    refuses_for(&service, "read-only").await;
    assert!(Database::at(standby.options.clone()).one::<bool>("select pg_promote()").await);
    takes_requests_again(&service, "c").await;
    assert!(!service.events("session_refused").is_empty());
    service.stop().await;
    standby.stop().await;
}

#[tokio::test]
async fn sessions_that_became_read_only_cost_no_caller_an_answer() {
    let cluster = Cluster::new().await;
    let database = cluster.database();
    let service = Start::on(&database).service().await;
    service.export("full", "a").await;
    for path in ["/exports", "/consumers", "/health/ready"] {
        service.get(path).await;
    }
    // Present sessions follow the file, and the role has its own value in later ones.
    database.run("alter role postgres set default_transaction_read_only = off").await;
    database.run("alter system set default_transaction_read_only = on").await;
    database.run("select pg_reload_conf()").await;
    let read_only = Database::at(database.options.clone().username("postgres"));
    until("present sessions are read-only", async || {
        let present: Vec<String> = database.all("show transaction_read_only").await;
        present == ["on"]
    })
    .await;
    assert_eq!(read_only.one::<String>("show transaction_read_only").await, "off");
    for consumer in ["b", "c", "d"] {
        let answer = service.call("POST", "/exports/full", &[("X-Consumer-ID", consumer)]).await;
        assert_eq!(answer.status(), 202);
        let job: Value = answer.json().await.unwrap();
        let job = service.completes(job["jobId"].as_str().unwrap()).await;
        assert_eq!(job["attempt"], 1, "{job}");
    }
    service.stop().await;
}

#[tokio::test]
async fn nothing_is_written_into_a_database_that_its_operator_made_read_only() {
    let database = Database::new().await;
    let (name, role) = (database.options.get_database().unwrap().to_owned(), database.role().await);
    database
        .run(&format!("alter role {role} superuser; alter database {name} set default_transaction_read_only = on"))
        .await;
    let start = || Start::plain().with("DATABASE_URL", database.url_as(&role, "pass"));
    let (_, line) = ends(
        start().output().await,
        1,
        "sessions are read-only: `ALTER ROLE … SET default_transaction_read_only = off`",
    );
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    let lift = format!("begin read write; alter role {role} set default_transaction_read_only = off; commit");
    database.run(&lift).await;
    let service = start().service().await;
    service.export("full", "a").await;
    service.stop().await;
}

#[tokio::test]
async fn apply_refuses_a_target_that_its_operator_made_read_only() {
    let pair = Pair::of("create table t (id int primary key); insert into t values (1)").await;
    let name = pair.target.options.get_database().unwrap().to_owned();
    pair.target.run(&format!("alter database {name} set default_transaction_read_only = on")).await;
    ends(
        pair.apply(&[]).output().await,
        1,
        "sessions are read-only: `ALTER ROLE … SET default_transaction_read_only = off`",
    );
    let target = Database::at(pair.target.options.clone());
    assert!(target.one::<bool>("select to_regclass('public.t') is null").await);
}

#[tokio::test]
async fn health_checks_say_why_postgres_cannot_be_used() {
    let database = Database::new().await;
    let (name, role) = (database.options.get_database().unwrap().to_owned(), database.role().await);
    database
        .run(&format!(
            "grant usage on schema public, cdc_export to {role}; grant all on all tables in schema public, cdc_export to {role};
             grant usage on all sequences in schema cdc_export to {role}"
        ))
        .await;
    let direct = Database::at(database.options.clone().username(&role).password("pass"));
    let proxy = Proxy::to(&database.options).await;
    let start = Start::plain().with("DATABASE_URL", url(&direct, &proxy)).with("FAILPOINTS", PROMPT);
    let service = start.with("WORKERS", 1).service().await;
    let end_sessions =
        format!("select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = '{role}'");
    for (reason, breaks, mends) in [
        (
            "the password is refused",
            format!("alter role {role} password 'other'"),
            format!("alter role {role} password 'pass'"),
        ),
        (
            "the password is refused",
            format!("alter role {role} valid until '2001-01-01'"),
            format!("alter role {role} valid until 'infinity'"),
        ),
        ("the login is refused", format!("alter role {role} nologin"), format!("alter role {role} login")),
        (
            "the login is refused",
            format!("revoke connect on database {name} from public"),
            format!("grant connect on database {name} to public"),
        ),
        (
            "too many connections",
            format!("alter role {role} connection limit 0"),
            format!("alter role {role} connection limit -1"),
        ),
        (
            "read-only",
            format!("alter role {role} set default_transaction_read_only = on"),
            format!("alter role {role} set default_transaction_read_only = off"),
        ),
    ] {
        database.run(&breaks).await;
        let told = format!("the database is not available: {reason}");
        until(&breaks, async || {
            database.run(&end_sessions).await;
            postgres_check(&service, "/health").await == (503, told.clone())
        })
        .await;
        assert_eq!(postgres_check(&service, "/health/ready").await, (503, told));
        database.run(&mends).await;
        until(&mends, async || postgres_check(&service, "/health").await == (200, "ok".to_owned())).await;
    }
    proxy.open.send_replace(false);
    refuses_for(&service, "no answer in time").await;
    proxy.open.send_replace(true);
    proxy.server.send_replace(database.options.clone().socket("/nonexistent"));
    database.run(&end_sessions).await;
    refuses_for(&service, "not reached").await;
    proxy.server.send_replace(database.options.clone());
    takes_requests_again(&service, "a").await;
    service.stop().await;
}

#[tokio::test]
async fn a_service_whose_role_lost_a_right_is_not_ready() {
    let database = Database::new().await;
    let role = database.role().await;
    database
        .run(&format!(
            "grant usage on schema public, cdc_export to {role}; grant all on all tables in schema public, cdc_export to {role}"
        ))
        .await;
    let service = Start::plain().with("DATABASE_URL", database.url_as(&role, "pass")).service().await;
    assert_eq!(postgres_check(&service, "/health/ready").await, (200, "ok".to_owned()));
    database
        .run(&format!(
            "revoke insert on cdc_export.jobs from {role}; revoke update on cdc_export.watermarks from {role}"
        ))
        .await;
    let lacks = "the database role lacks a right: insert on jobs, update on watermarks";
    assert_eq!(postgres_check(&service, "/health/ready").await, (503, lacks.to_owned()));
    assert_eq!(Scrape::of(&service).await.count("cdc_export_database_up", &[]), 0);
    database.run(&format!("grant all on cdc_export.jobs, cdc_export.watermarks to {role}")).await;
    assert_eq!(postgres_check(&service, "/health/ready").await, (200, "ok".to_owned()));
    service.stop().await;
}

#[tokio::test]
async fn with_keys_a_scrape_tells_that_the_database_is_away() {
    let database = Database::new().await;
    let proxy = Proxy::to(&database.options).await;
    let start =
        Start::plain().with("DATABASE_URL", url(&database, &proxy)).with("AUTH", "keys").with("FAILPOINTS", PROMPT);
    let reader = keys::bearer(&database, "reads", &["export:read"], &[]).await;
    let unused = keys::bearer(&database, "not used yet", &["admin"], &[]).await;
    let service = keys::served(start, &database).await;
    assert_eq!(Scrape::of(&service).await.count("cdc_export_database_up", &[]), 1);
    assert_eq!(keys::call_as(&service, &reader, "GET", "/exports").await.status(), 200);
    proxy.server.send_replace(database.options.clone().socket("/nonexistent"));
    let name = database.options.get_database().unwrap();
    let end = format!(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = '{name}' and application_name like 'cdc-export %'"
    );
    database.run(&end).await;
    until("the database is away", async || Scrape::of(&service).await.count("cdc_export_database_up", &[]) == 0).await;
    // Only the metrics, and only with a key that may read them.
    for (key, path, status) in
        [(&reader, "/metrics", 403), (&reader, "/exports", 503), (&format!("{reader}x"), "/metrics", 401)]
    {
        let answer = keys::call_as(&service, key, "GET", path).await;
        assert_eq!(answer.status(), status, "{path}");
    }
    let forged = format!("{}{}", &unused[..unused.len() - 4], "0000");
    assert_ne!(keys::call_as(&service, &forged, "GET", "/metrics").await.status(), 200);
    proxy.server.send_replace(database.options.clone());
    until("the database is back", async || Scrape::of(&service).await.count("cdc_export_database_up", &[]) == 1).await;
    service.stop().await;
}

#[tokio::test]
async fn a_folder_that_gives_no_answer_is_not_ready_and_logged_once_a_minute() {
    let database = Database::new().await;
    let failpoints = format!("sink.room=sleep:20000,{PROMPT}");
    let service = Start::on(&database).with("FAILPOINTS", failpoints).service().await;
    for _ in 0..3 {
        let ready = service.call("GET", "/health/ready", &[]).await;
        let (status, body) = (ready.status().as_u16(), ready.json::<Value>().await.unwrap());
        let why = "the output folder or bucket can't be used: the output folder or bucket failed: timed out";
        assert_eq!((status, &body["checks"]["output"]), (503, &json!(why)));
    }
    assert_eq!(Scrape::of(&service).await.count("cdc_export_output_ready", &[]), 0);
    assert_eq!(service.events("output_not_ready").len(), 1, "{}", service.log());
    service.stop().await;
}
