//! Databases that were put back, promoted or replaced: what consumers have seen of a future that is gone is noticed, and what is
//! nothing but a failover goes on.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::guard::{connection, full_heals, output, passes, program, refused};
use crate::harness::{
    Database, Service, Start, connect_options, embedded_settings, embedded_settings_with_cluster, eventually,
    reachable_folder, refusal, server_lacks,
};

/// A cluster whose data directory a test may copy and put back.
struct Cluster {
    home: TempDir,
    server: Option<private_postgres::Server>,
}

impl Cluster {
    async fn new() -> Cluster {
        let mut cluster = Cluster { home: reachable_folder(), server: None };
        embedded_settings_with_cluster(&cluster.home.path().join("data")).await;
        cluster.start().await;
        cluster
    }

    async fn start(&mut self) {
        let settings = embedded_settings(&self.home.path().join("data"));
        self.server = Some(private_postgres::Server::start(&settings).await.unwrap());
    }

    async fn stop(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    fn database(&self) -> Database {
        Database::at(connect_options(self.server.as_ref().unwrap().endpoint()))
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data/postgres")
    }

    /// A place for a copy of the data.
    fn copy(&self) -> PathBuf {
        self.home.path().join("copy")
    }

    /// Copies the data of the server, which is stopped.
    fn copy_cold(&self) {
        copied(&self.data(), &self.copy());
    }

    /// Copies the data of the server while it runs, with the WAL that a recovery needs.
    async fn copy_hot(&self) {
        std::fs::create_dir(self.copy()).unwrap();
        let owner = std::fs::metadata(self.data()).unwrap();
        std::os::unix::fs::chown(self.copy(), Some(owner.uid()), Some(owner.gid())).unwrap();
        std::fs::set_permissions(self.copy(), PermissionsExt::from_mode(0o700)).unwrap();
        let options = connect_options(self.server.as_ref().unwrap().endpoint());
        let mut backup = program(&options, "pg_basebackup", &self.copy()).await;
        output(backup.args(connection(&options)).args(["-X", "fetch", "-c", "fast", "-D"]).arg(self.copy())).await;
    }

    /// Stops the server and starts it from the copy.
    async fn put_back(&mut self) {
        self.stop().await;
        self.take_copy();
        self.start().await;
    }

    fn take_copy(&self) {
        std::fs::remove_dir_all(self.data()).unwrap();
        copied(&self.copy(), &self.data());
    }

    /// Has the copy recover as a server of its own timeline does when it starts: to the end of the WAL that it has.
    fn recovers(&self, signal: &str) {
        let owner = std::fs::metadata(self.data()).unwrap();
        let file = self.data().join(signal);
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
        let settings = self.data().join("postgresql.auto.conf");
        let text = std::fs::read_to_string(&settings).unwrap();
        std::fs::write(&settings, format!("{text}restore_command = 'false'\n")).unwrap();
    }

    /// Waits until the server takes writes.
    async fn promoted(&self) {
        let database = self.database();
        eventually("it is promoted", || async {
            let mut conn = PgConnection::connect_with(&database.options).await.ok()?;
            let recovers: bool = sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&mut conn).await.ok()?;
            (!recovers).then_some(())
        })
        .await;
    }
}

fn copied(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

async fn timeline(database: &Database) -> String {
    database.one("select left(pg_walfile_name(pg_current_wal_lsn()), 8)").await
}

/// Asks for a delta after an export: its job, or why not.
async fn delta_after(service: &Service, consumer: &str, loaded: &serde_json::Value) -> Result<String, (u16, String)> {
    let request = service.client.post(format!("{}/exports/delta", service.address)).header("X-Consumer-ID", consumer);
    let answer = request.json(&json!({"after": loaded["jobId"]})).send().await.unwrap();
    match answer.status().as_u16() {
        202 => Ok(answer.json::<serde_json::Value>().await.unwrap()["jobId"].as_str().unwrap().to_owned()),
        _ => Err(refusal(answer).await),
    }
}

/// Removes what the folder knows of lanes.
fn forget_markers(service: &Service) {
    let markers = markers(service);
    assert!(!markers.is_empty(), "there were some");
    for marker in markers {
        std::fs::remove_file(marker).unwrap();
    }
}

/// A service on a cluster with some users, all of them exported to these consumers.
async fn exported(cluster: &Cluster, consumers: &[&str]) -> Service {
    let database = cluster.database();
    let start = Start::on(&database).with("SEED_ROWS", 0).service().await;
    database.add_users(1, 5).await;
    for consumer in consumers {
        passes(&start, "full", consumer, None).await;
    }
    start
}

/// What is delivered to `a` and to a new consumer `late`, and to nobody else, after a backup.
async fn delivered_afterwards(cluster: &Cluster, service: &Service) {
    cluster.database().add_users(6, 6).await;
    assert_eq!(passes(service, "delta", "a", None).await.1.ids(), [6]);
    passes(service, "full", "late", None).await;
}

async fn what_was_delivered_is_missed(database: &Database, service: &Service) {
    let consumers: serde_json::Value = service.call("GET", "/consumers", &[]).await.json().await.unwrap();
    let words: Vec<_> =
        consumers["items"].as_array().unwrap().iter().map(|c| (&c["consumerId"], &c["continuity"])).collect();
    assert_eq!(words, [(&json!("a"), &json!("database_restored")), (&json!("b"), &json!(null))]);
    for consumer in ["a", "late"] {
        for export_type in ["incremental", "delta"] {
            refused(database, service, export_type, consumer, "database_restored").await;
        }
        full_heals(database, service, consumer, "database_restored").await;
    }
}

#[tokio::test]
async fn a_cold_copy_put_back_is_seen_by_what_the_folder_knows() {
    let mut cluster = Cluster::new().await;
    let mut service = exported(&cluster, &["a", "b"]).await;
    let (loaded, _) = passes(&service, "full", "says", None).await;
    service.end().await;
    let on = |cluster: &Cluster, service: &Service| Start::on(&cluster.database()).sharing_output(service);
    // Jobs that wait in the copy, and will have been delivered.
    let mut submitting = on(&cluster, &service).arguments(&["serve", "--no-workers"]).service().await;
    let (first, next) = (submitting.submit("full", "c").await, submitting.submit("incremental", "c").await);
    submitting.end().await;
    cluster.stop().await;
    cluster.copy_cold();
    cluster.start().await;
    let mut service = on(&cluster, &service).service().await;
    for id in [&first, &next] {
        assert_eq!(service.ended(id).await["status"], "completed");
    }
    delivered_afterwards(&cluster, &service).await;
    let (lost, _) = passes(&service, "delta", "says", None).await;
    service.end().await;

    cluster.put_back().await;
    let database = cluster.database();
    let service = on(&cluster, &service).service().await;
    // A caller that says what it loaded last knows better than the folder, which only knows what was handed out.
    refused(&database, &service, "delta", "says", "database_restored").await;
    assert_eq!(delta_after(&service, "says", &lost).await, Err((409, "database_restored".to_owned())));
    let id = delta_after(&service, "says", &loaded).await.unwrap();
    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["continuity"]), (&json!("completed"), &json!(null)), "{job}");
    database
        .run("delete from exports where consumer_id = 'says'; delete from watermarks where consumer_id = 'says'")
        .await;
    database.run("delete from cdc_export.lanes where consumer_id = 'says'").await;
    // The first one's file may be another one than that which its consumer has, and the next has nothing to go on from.
    for id in [&first, &next] {
        let job = service.ended(id).await;
        assert_eq!(
            (&job["status"], &job["error"]["code"], &job["continuity"]),
            (&json!("failed"), &json!("full_export_needed"), &json!("database_restored")),
            "{job}"
        );
    }
    database
        .run("delete from exports where consumer_id = 'c'; delete from cdc_export.lanes where consumer_id = 'c'")
        .await;
    what_was_delivered_is_missed(&database, &service).await;
    // Who has seen nothing of what is gone goes on.
    database.add_users(7, 7).await;
    assert_eq!(passes(&service, "delta", "b", None).await.1.ids(), [7]);
    service.stop().await;
    cluster.stop().await;
}

/// An acknowledgement is a part of the database, and goes back with it: what the database doesn't know can't be acknowledged, and what its
/// consumer has to be handed again is to be acknowledged again.
#[tokio::test]
async fn what_was_acknowledged_goes_back_with_its_lane() {
    let mut cluster = Cluster::new().await;
    let mut service = exported(&cluster, &["a", "b"]).await;
    let ack = async |service: &Service, job: &serde_json::Value| {
        let path = format!("/exports/{}/ack", job["jobId"].as_str().unwrap());
        service.call("POST", &path, &[]).await
    };
    let told = async |service: &Service| {
        let page: serde_json::Value = service.call("GET", "/consumers", &[]).await.json().await.unwrap();
        page["items"].as_array().unwrap().iter().map(|of| of["unacknowledged"].clone()).collect::<Vec<_>>()
    };
    let (known, _) = passes(&service, "delta", "a", None).await;
    assert_eq!(ack(&service, &known).await.status(), 200);
    service.end().await;
    cluster.stop().await;
    cluster.copy_cold();
    cluster.start().await;
    let on = |cluster: &Cluster, service: &Service| Start::on(&cluster.database()).sharing_output(service);
    let mut service = on(&cluster, &service).service().await;
    let mut lost = Vec::new();
    for consumer in ["a", "a", "b"] {
        lost.push(passes(&service, "delta", consumer, None).await.0);
    }
    for job in &lost[1..] {
        assert_eq!(ack(&service, job).await.status(), 200);
    }
    assert_eq!(told(&service).await, [json!(0), json!(0)]);
    service.end().await;

    cluster.put_back().await;
    let service = on(&cluster, &service).service().await;
    assert_eq!(told(&service).await, [json!(0), json!(null)]);
    for job in &lost {
        assert_eq!(refusal(ack(&service, job).await).await, (404, "not_found".to_owned()));
    }
    let (full, _) = passes(&service, "full", "a", Some("database_restored")).await;
    assert_eq!((&full["number"], &full["acknowledged"]), (&json!(3), &json!(false)));
    assert_eq!(told(&service).await, [json!(1), json!(null)]);
    assert_eq!(ack(&service, &full).await.status(), 200);
    assert_eq!(told(&service).await, [json!(0), json!(null)]);
    service.stop().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_recovery_to_a_point_in_time_is_seen() {
    if server_lacks("pg_basebackup").await {
        return;
    }
    let mut cluster = Cluster::new().await;
    let mut service = exported(&cluster, &["a", "b"]).await;
    cluster.copy_hot().await;
    let before = timeline(&cluster.database()).await;
    delivered_afterwards(&cluster, &service).await;
    service.end().await;
    cluster.stop().await;
    cluster.take_copy();
    cluster.recovers("recovery.signal");
    cluster.start().await;
    cluster.promoted().await;
    let database = cluster.database();
    assert_ne!(timeline(&database).await, before);
    let mut service = Start::on(&database).sharing_output(&service).service().await;
    what_was_delivered_is_missed(&database, &service).await;
    database.add_users(7, 7).await;
    assert_eq!(passes(&service, "delta", "b", None).await.1.ids(), [7]);
    service.end().await;
    cluster.stop().await;
}

#[tokio::test]
async fn without_a_marker_another_timeline_needs_a_full_export() {
    if server_lacks("pg_basebackup").await {
        return;
    }
    let mut cluster = Cluster::new().await;
    let mut service = exported(&cluster, &["a", "b"]).await;
    service.end().await;
    let on = |cluster: &Cluster, service: &Service| Start::on(&cluster.database()).sharing_output(service);
    // Exports without a consumer have nobody to remember them.
    let mut submitting = on(&cluster, &service).arguments(&["serve", "--no-workers"]).service().await;
    let answer = submitting.call("POST", "/exports", &[]).await;
    let ad_hoc = answer.json::<serde_json::Value>().await.unwrap()["jobId"].as_str().unwrap().to_owned();
    submitting.end().await;
    cluster.copy_hot().await;
    cluster.stop().await;
    cluster.take_copy();
    cluster.recovers("recovery.signal");
    cluster.start().await;
    cluster.promoted().await;
    forget_markers(&service);
    let database = cluster.database();
    let service = on(&cluster, &service).service().await;
    let job = service.ended(&ad_hoc).await;
    assert_eq!((&job["status"], &job["continuity"]), (&json!("failed"), &json!("database_restored")), "{job}");
    for export_type in ["incremental", "delta"] {
        refused(&database, &service, export_type, "a", "database_restored").await;
    }
    full_heals(&database, &service, "a", "database_restored").await;
    // On one timeline nothing is amiss without a marker.
    forget_markers(&service);
    database.add_users(7, 7).await;
    assert_eq!(passes(&service, "delta", "a", None).await.1.ids(), [7]);
    service.stop().await;
    cluster.stop().await;
}

/// What becomes of a standby's promotion: of one that has all of its primary, or of one that lags behind a delivery.
async fn promoted_standby(lags: bool) {
    let mut cluster = Cluster::new().await;
    let mut service = exported(&cluster, &["a", "b"]).await;
    let before = timeline(&cluster.database()).await;
    if lags {
        cluster.copy_hot().await;
    }
    delivered_afterwards(&cluster, &service).await;
    service.end().await;
    let mut submitting =
        Start::on(&cluster.database()).sharing_output(&service).arguments(&["serve", "--no-workers"]).service().await;
    let waiting = submitting.submit("delta", "a").await;
    submitting.end().await;
    cluster.stop().await;
    if lags {
        cluster.take_copy();
    }
    cluster.recovers("standby.signal");
    cluster.start().await;
    assert!(cluster.database().one::<bool>("select pg_promote()").await);
    cluster.promoted().await;
    let database = cluster.database();
    assert_ne!(timeline(&database).await, before);
    let service = Start::on(&database).sharing_output(&service).service().await;
    if lags {
        what_was_delivered_is_missed(&database, &service).await;
    } else {
        // A job that was submitted before goes on as well.
        assert_eq!(service.ended(&waiting).await["status"], "completed");
    }
    database.add_users(7, 7).await;
    for consumer in ["a", "b", "late"] {
        passes(&service, "delta", consumer, None).await;
    }
    service.stop().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_standby_that_lagged_is_seen() {
    promoted_standby(true).await;
}

#[tokio::test]
async fn a_standby_that_did_not_lag_goes_on() {
    promoted_standby(false).await;
}

#[tokio::test]
async fn a_job_that_ran_when_the_database_was_copied_is_not_taken_over() {
    let mut cluster = Cluster::new().await;
    let mut service = exported(&cluster, &["a"]).await;
    service.end().await;
    let mut dying = Start::on(&cluster.database())
        .sharing_output(&service)
        .with("FAILPOINTS", "worker.staged=kill")
        .with("LEASE_SECONDS", 2)
        .service()
        .await;
    let request = dying.client.post(format!("{}/exports/delta", dying.address)).header("X-Consumer-ID", "a");
    let _ = request.send().await;
    dying.dies().await;
    let id: String = cluster.database().one("select id::text from exports where status = 'processing'").await;
    cluster.stop().await;
    cluster.copy_cold();
    cluster.start().await;
    cluster.database().add_users(6, 6).await;
    let mut service = Start::on(&cluster.database()).sharing_output(&service).service().await;
    assert_eq!(service.ended(&id).await["rowsExported"], 1);
    service.end().await;

    cluster.put_back().await;
    let database = cluster.database();
    let service = Start::on(&database).sharing_output(&service).service().await;
    let job = service.ended(&id).await;
    assert_eq!(
        (&job["status"], &job["error"]["code"], &job["continuity"]),
        (&json!("failed"), &json!("full_export_needed"), &json!("database_restored")),
        "{job}"
    );
    refused(&database, &service, "delta", "a", "database_restored").await;
    full_heals(&database, &service, "a", "database_restored").await;
    service.stop().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_job_that_had_no_name_when_the_database_was_copied_hides_nothing_after_it() {
    let mut cluster = Cluster::new().await;
    let mut service = exported(&cluster, &["a"]).await;
    service.end().await;
    cluster.database().add_users(6, 6).await;
    let on = |cluster: &Cluster| Start::on(&cluster.database()).sharing_output(&service);
    let mut dying = on(&cluster).with("FAILPOINTS", "worker.committed=kill").service().await;
    let request = dying.client.post(format!("{}/exports/delta", dying.address)).header("X-Consumer-ID", "a");
    let _ = request.send().await;
    dying.dies().await;
    let unpublished = "select id::text from exports where status = 'completed' and published_at is null";
    let id: String = cluster.database().one(unpublished).await;
    cluster.stop().await;
    cluster.copy_cold();
    cluster.start().await;
    let mut living = on(&cluster).service().await;
    assert_eq!(living.ended(&id).await["rowsExported"], 1);
    cluster.database().add_users(7, 7).await;
    assert_eq!(passes(&living, "delta", "a", None).await.1.ids(), [7]);
    living.end().await;

    // Committed before, it is handed out again, and isn't the last that was.
    cluster.put_back().await;
    let database = cluster.database();
    let service = on(&cluster).service().await;
    assert_eq!(service.ended(&id).await["status"], "completed");
    for export_type in ["incremental", "delta"] {
        refused(&database, &service, export_type, "a", "database_restored").await;
    }
    assert_eq!(service.events("marker_left")[0]["jobId"], json!(id));
    full_heals(&database, &service, "a", "database_restored").await;
    service.stop().await;
    cluster.stop().await;
}

/// The markers that a service has in its folder.
fn markers(service: &Service) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(service.output()).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(".lane-")).collect()
}

#[tokio::test]
async fn a_marker_that_cannot_be_read_vouches_for_nothing() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let service = Start::on(&database).service().await;
    passes(&service, "full", "a", None).await;
    let marker = markers(&service).remove(0);
    let whole = std::fs::read(&marker).unwrap();
    let theirs = String::from_utf8(whole.clone()).unwrap().replace("\"a\"", "\"b\"");
    for text in [&whole[..whole.len() / 2], theirs.as_bytes()] {
        std::fs::write(&marker, text).unwrap();
        for export_type in ["incremental", "delta"] {
            refused(&database, &service, export_type, "a", "database_restored").await;
        }
        let name = marker.file_name().unwrap().to_str().unwrap();
        assert_eq!(service.events("marker_unreadable").last().unwrap()["file"], json!(name));
        full_heals(&database, &service, "a", "database_restored").await;
    }
    // What isn't even a file is refused as well, and named to whoever has to take it away.
    std::fs::remove_file(&marker).unwrap();
    std::fs::create_dir(&marker).unwrap();
    refused(&database, &service, "delta", "a", "database_restored").await;
    let id = service.submit("full", "a").await;
    let said = service.says("publish_failed", &id).await["error"].as_str().unwrap().to_owned();
    assert!(said.contains(marker.file_name().unwrap().to_str().unwrap()), "{said}");
    std::fs::remove_dir(&marker).unwrap();
    assert_eq!(service.ended(&id).await["continuity"], "database_restored");
    passes(&service, "delta", "a", None).await;
    service.stop().await;
}

#[tokio::test]
async fn a_marker_that_fails_to_be_read_hides_no_other_one() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let service = Start::on(&database).service().await;
    for consumer in ["a", "b", "c"] {
        service.export("full", consumer).await;
    }
    let output = Start::on(&database).sharing_output(&service);
    service.stop().await;
    // As in a database that was put back: it doesn't know what the folder's markers name.
    database.run("delete from exports").await;
    let service = output.with("FAILPOINTS", "sink.marker=error@2").service().await;
    let consumers: serde_json::Value = service.call("GET", "/consumers", &[]).await.json().await.unwrap();
    let words: Vec<_> = consumers["items"].as_array().unwrap().iter().map(|consumer| &consumer["continuity"]).collect();
    assert_eq!(words, [&json!("database_restored"), &json!(null), &json!("database_restored")], "{consumers}");
    service.stop().await;
}

#[tokio::test]
async fn transaction_ids_that_were_set_back_are_named() {
    if server_lacks("pg_resetwal").await {
        return;
    }
    let mut cluster = Cluster::new().await;
    let mut service = exported(&cluster, &["a"]).await;
    let database = cluster.database();
    let mut reset = program(&database.options, "pg_resetwal", &cluster.data()).await;
    let back: String = database.one("select pg_current_xact_id()::text").await;
    for _ in 0..300 {
        database.run("select pg_current_xact_id()").await;
    }
    passes(&service, "delta", "a", None).await;
    // It says every ten seconds that it lives.
    let seen = format!("select exists (select from cdc_export.destinations where xmin::text::bigint > {back})");
    eventually("it was seen", async || database.one::<bool>(&seen).await.then_some(())).await;
    service.end().await;
    cluster.stop().await;
    output(reset.args(["-x", &back, "-D"]).arg(cluster.data())).await;
    cluster.start().await;

    let service = Start::on(&cluster.database()).sharing_output(&service).service().await;
    let answer = service.call("GET", "/health", &[]).await;
    assert_eq!(answer.status(), 503);
    let said = answer.json::<serde_json::Value>().await.unwrap()["checks"]["postgres"].as_str().unwrap().to_owned();
    assert!(said.starts_with("Postgres's transaction ids were set back"), "{said}");
    let answer = service.call("POST", "/exports/delta", &[("X-Consumer-ID", "a")]).await;
    assert_eq!(answer.status(), 503);
    let problem: serde_json::Value = answer.json().await.unwrap();
    assert_eq!((&problem["code"], &problem["detail"]), (&json!("database_unavailable"), &json!(said)));
    let logged = service.events("announce_failed");
    assert!(logged[0]["error"].as_str().unwrap().contains(&said), "{logged:?}");
    // Reading goes on.
    assert_eq!(service.call("GET", "/exports", &[]).await.status(), 200);
    service.stop().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_process_that_slept_leaves_no_older_marker() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let sleeper = Start::on(&database).with("FAILPOINTS", "sink.mark=hold").with("WORKERS", 1).service().await;
    let first = sleeper.submit("full", "a").await;
    sleeper.reaches("sink.mark").await;
    sleeper.signal(nix::sys::signal::Signal::SIGSTOP);
    let other = Start::on(&database).sharing_output(&sleeper).service().await;
    assert_eq!(other.ended(&first).await["status"], "completed");
    let (last, _) = passes(&other, "delta", "a", None).await;
    let marked = || {
        let [marker] = &markers(&other)[..] else { panic!("one marker") };
        serde_json::from_slice::<serde_json::Value>(&std::fs::read(marker).unwrap()).unwrap()["job"].clone()
    };
    assert_eq!(marked(), last["jobId"]);
    sleeper.signal(nix::sys::signal::Signal::SIGCONT);
    sleeper.release("sink.mark").await;
    // It sees that somebody else has done what it was about to do, and more.
    let left = sleeper.says("marker_left", &first).await;
    assert_eq!((&left["marked"], marked()), (&last["jobId"], last["jobId"].clone()));
    passes(&other, "delta", "a", None).await;
    sleeper.stop().await;
    other.stop().await;
}
