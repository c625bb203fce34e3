//! Databases that were put back, promoted or replaced: what consumers have seen of a future that is gone is noticed,
//! and what is nothing but a failover goes on.

pub(crate) mod cluster;
mod deliveries;

use serde_json::json;

use crate::continuity::{self, full_heals, passes, refused};
use crate::harness::{Database, Service, Start, needs_full, refusal, server_lacks, serving_users};
use crate::restores::cluster::{Cluster, timeline};
use crate::restores::deliveries::{delivered_afterwards, exported, markers, what_was_delivered_is_missed};

/// Asks for a delta after an export: its job, or why not.
async fn delta_after(service: &Service, consumer: &str, loaded: &serde_json::Value) -> Result<String, (u16, String)> {
    let headers = [("X-Consumer-ID", consumer)];
    let answer = service.post("/exports/delta", &headers, &json!({"after": loaded["jobId"]})).await;
    match answer.status().as_u16() {
        202 => Ok(answer.json::<serde_json::Value>().await.unwrap()["jobId"].as_str().unwrap().to_owned()),
        _ => Err(refusal(answer).await),
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
    cluster.copy_cold().await;
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
    let statements =
        "delete from cdc_export.exports where consumer_id = 'says'; delete from watermarks where consumer_id = 'says'";
    database.run(statements).await;
    database.run("delete from cdc_export.lanes where consumer_id = 'says'").await;
    // The first one's file may be another one than that which its consumer has, and the next has nothing to go on from.
    for id in [&first, &next] {
        needs_full(&service.ended(id).await, "database_restored");
    }
    let statements =
        "delete from cdc_export.exports where consumer_id = 'c'; delete from cdc_export.lanes where consumer_id = 'c'";
    database.run(statements).await;
    what_was_delivered_is_missed(&database, &service).await;
    // A consumer that has none of the lost exports goes on.
    database.add_users(7, 7).await;
    assert_eq!(passes(&service, "delta", "b", None).await.1.ids(), [7]);
    service.stop().await;
    cluster.stop().await;
}

/// As by `pg_restore -t watermarks`. The log may have lost what the exports since have.
#[tokio::test]
async fn positions_that_are_put_back_alone_are_seen() {
    let (database, service) = continuity::exported(5, &["a", "b"]).await;
    database.run("create table kept as table watermarks; update users set name = 'x' where id = 1").await;
    assert_eq!(passes(&service, "delta", "a", None).await.1.ids(), [1]);
    database.run("delete from watermarks; insert into watermarks overriding system value select * from kept").await;
    refused(&database, &service, "incremental", "a", "database_restored").await;
    refused(&database, &service, "delta", "a", "database_restored").await;
    assert_eq!(passes(&service, "delta", "b", None).await.1.ids(), [1]);
    full_heals(&database, &service, "a", "database_restored").await;
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
async fn a_marker_that_cannot_be_read_vouches_for_nothing() {
    let (database, service) = serving_users(5).await;
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
    // A marker that isn't a file is refused as well. The error names it, so that somebody can take it away.
    std::fs::remove_file(&marker).unwrap();
    std::fs::create_dir(&marker).unwrap();
    refused(&database, &service, "delta", "a", "database_restored").await;
    let id = service.submit("full", "a").await;
    let said = service.says("publish_failed", &id).await["error"].as_str().unwrap().to_owned();
    assert!(said.contains(marker.file_name().unwrap().to_str().unwrap()), "{said}");
    std::fs::remove_dir(&marker).unwrap();
    assert_eq!(service.ended(&id).await["continuity"], "database_restored");
    passes(&service, "delta", "a", None).await;
}

#[tokio::test]
async fn a_marker_that_fails_to_be_read_hides_no_other_one() {
    let (database, service) = serving_users(5).await;
    for consumer in ["a", "b", "c"] {
        service.export("full", consumer).await;
    }
    let output = Start::on(&database).sharing_output(&service);
    service.stop().await;
    // The database now looks restored: it doesn't know the exports that the folder's markers name.
    database.run("delete from cdc_export.exports").await;
    let service = output.with("FAILPOINTS", "sink.marker=error@2").service().await;
    let consumers: serde_json::Value = service.call("GET", "/consumers", &[]).await.json().await.unwrap();
    let words: Vec<_> = consumers["items"].as_array().unwrap().iter().map(|consumer| &consumer["continuity"]).collect();
    assert_eq!(words, [&json!("database_restored"), &json!(null), &json!("database_restored")], "{consumers}");
}

#[tokio::test]
async fn a_process_that_slept_leaves_no_older_marker() {
    // At the second place it has seen the marker, and its own is on the disk under a hidden name.
    tokio::join!(slept_at("sink.mark"), slept_at("sink.drafted"));
}

async fn slept_at(failpoint: &str) {
    let database = Database::with_users(5).await;
    let sleeper =
        Start::on(&database).with("FAILPOINTS", format!("{failpoint}=hold")).with("WORKERS", 1).service().await;
    let first = sleeper.submit("full", "a").await;
    sleeper.reaches(failpoint).await;
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
    sleeper.release(failpoint).await;
    // The process sees that another one has done its work, and more.
    let left = sleeper.says("marker_left", &first).await;
    assert_eq!((&left["marked"], marked()), (&last["jobId"], last["jobId"].clone()));
    passes(&other, "delta", "a", None).await;
}
