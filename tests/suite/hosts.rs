//! Several hosts over one database, each with an output folder of its own.

use serde_json::{Value, json};

use crate::harness::{Database, Service, Start};

async fn download(service: &Service, id: &str) -> reqwest::Response {
    service.call("GET", &format!("/exports/{id}/download"), &[]).await
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
    let there = Start::on(&database).service().await;

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
        let answer = download(host, id).await;
        assert_eq!(answer.bytes().await.unwrap(), std::fs::read(host.path(&job)).unwrap());
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
            "update cdc_export.destinations s set seen_at = seen_at - interval '{ago}' from exports e
             where s.id = e.destination_id and e.id = '{orphan}'"
        );
        database.run(&statements).await;
        let job = there.completes(&orphan).await;
        assert!(there.path(&job).exists());
        is_elsewhere(&here, &orphan).await;
    }
}
