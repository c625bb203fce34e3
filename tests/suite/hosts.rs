//! Several hosts over one database, each with an output folder of its own.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Database, Service, Start};

async fn download(service: &Service, id: &str) -> reqwest::Response {
    service.call("GET", &format!("/exports/{id}/download"), &[]).await
}

/// Sets the records of destinations back, so that only sessions tell which ones are used.
async fn make_records_old(database: &Database) {
    database.run("update cdc_export.destinations set seen_at = seen_at - interval '61 s'").await;
}

/// The file is said to be elsewhere, for the moment.
async fn is_elsewhere(service: &Service, id: &str) {
    let answer = download(service, id).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"), "{:?}", answer.headers());
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "file_on_other_host");
}

#[tokio::test]
async fn a_job_stays_with_the_host_it_was_submitted_to_while_that_lives() {
    let database = Database::with_users(5).await;
    let here = Start::on(&database).with("WORKERS", 1).service().await;
    let there = Start::on(&database).with("FAILPOINTS", "store.abandoned=time:1").service().await;
    make_records_old(&database).await;

    // The only worker here is held up by its first job. There, two are idle: the second job is the oldest they could
    // take, and they take the third.
    let held = database.hold_exports().await;
    let first = here.submit("full", "first").await;
    here.becomes(&first, "processing").await;
    let second = here.submit("full", "second").await;
    let third = there.submit("full", "third").await;
    there.becomes(&third, "processing").await;
    let waiting = here.job(&second).await;
    assert_eq!((&waiting["status"], &waiting["attempt"]), (&json!("pending"), &json!(0)), "{waiting}");
    held.rollback().await.unwrap();

    for (id, host, other) in [(&first, &here, &there), (&second, &here, &there), (&third, &there, &here)] {
        let job = other.completes(id).await;
        assert_eq!(download(host, id).await.bytes().await.unwrap(), std::fs::read(host.path(&job)).unwrap());
        assert!(!other.path(&job).exists());
        is_elsewhere(other, id).await;
    }

    // A host that gives no sign any more loses its jobs to the others.
    let folder = Start::on(&database).sharing_output(&here).arguments(&["serve", "--no-workers"]);
    here.stop().await;
    let here = folder.service().await;
    // In the other direction it was the clock.
    for ago in ["61 s", "-1 hour"] {
        database.run("update cdc_export.destinations set seen_at = clock_timestamp()").await;
        let orphan = here.submit("delta", "second").await;
        let own = there.submit("full", "third").await;
        there.ended(&own).await;
        assert_eq!(there.job(&orphan).await["status"], "pending", "its host lived a moment ago");
        let statements = format!(
            "update cdc_export.destinations s set seen_at = seen_at - interval '{ago}' from cdc_export.jobs j
             where s.id = j.destination_id and j.id = '{orphan}'"
        );
        database.run(&statements).await;
        assert!(there.path(&there.completes(&orphan).await).exists());
        is_elsewhere(&here, &orphan).await;
    }
}

#[tokio::test]
async fn a_job_of_a_host_that_has_stopped_or_died_waits_for_a_minute() {
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        let database = Database::with_users(5).await;
        let mut here = Start::on(&database).with("WORKERS", 1).service().await;
        let patient = Start::on(&database).service().await;
        let held = database.hold_exports().await;
        let first = here.submit("full", "first").await;
        here.becomes(&first, "processing").await;
        let orphan = here.submit("full", "second").await;
        make_records_old(&database).await;
        here.signal(signal);
        held.rollback().await.unwrap();
        let own = patient.submit("full", "third").await;
        patient.ended(&own).await;
        assert_eq!(patient.job(&orphan).await["status"], "pending");
        let hasty = Start::on(&database).with("FAILPOINTS", "store.abandoned=time:1").service().await;
        assert!(hasty.path(&hasty.completes(&orphan).await).exists());
        if signal == Signal::SIGSTOP {
            here.signal(Signal::SIGCONT);
        } else {
            here.dies().await;
        }
    }
}
