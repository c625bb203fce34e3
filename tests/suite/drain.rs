//! A process that is told to stop lets running exports end, for as long as DRAIN_SECONDS says.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::events::Stream;
use crate::harness::{Database, Service, Start, eventually, until};

async fn runs(service: &Service, id: &str) {
    until("it runs", async || service.job(id).await["status"] == "processing").await;
}

#[tokio::test]
async fn an_export_that_ends_in_time_is_whole() {
    let database = Database::with_users(5).await;
    let mut service = Start::on(&database).with("DRAIN_SECONDS", 600).service().await;
    let held = database.hold_exports().await;
    let [running, cancelled] = [service.submit("full", "a").await, service.submit("full", "b").await];
    for id in [&running, &cancelled] {
        runs(&service, id).await;
    }
    let followed = Stream::of(&service, &running).await;
    assert_eq!(service.call("GET", "/health", &[]).await.headers().get("Connection"), None);
    service.signal(Signal::SIGTERM);
    eventually("it is not ready", || async {
        let answer = service.call("GET", "/health/ready", &[]).await;
        // A client that keeps connections, like a proxy, makes the next one elsewhere.
        let refused = answer.status() == 503 && answer.headers()["Connection"] == "close";
        let body: Value = answer.json().await.unwrap();
        (refused && body["checks"]["service"] == "it is stopping" && body["checks"]["postgres"] == "ok").then_some(())
    })
    .await;
    assert_eq!(service.call("GET", "/health", &[]).await.status(), 200, "it lives");
    // The process still answers, accepts requests for others to run, and cancels.
    let waiting = service.submit("full", "c").await;
    assert_eq!(service.call("POST", &format!("/exports/{cancelled}/cancel"), &[]).await.status(), 202);
    assert_eq!(service.ended(&cancelled).await["status"], "cancelled");
    assert_eq!(service.job(&running).await["status"], "processing");
    held.rollback().await.unwrap();
    assert_eq!(service.exit().await, Some(0));
    assert_eq!(followed.rest().await.last().unwrap().0, "completed", "what it was waited for is told");
    let seen = |id: &str| format!("select status || ' ' || attempt from exports where job = '{id}'");
    assert_eq!(database.one::<String>(&seen(&running)).await, "completed 1");
    assert_eq!(database.one::<String>(&seen(&waiting)).await, "pending 0");
    assert_eq!(service.events("drain_ended").len(), 0);

    let next = Start::on(&database).sharing_output(&service).service().await;
    assert_eq!(next.ended(&waiting).await["status"], "completed");
}

#[tokio::test]
async fn one_that_takes_longer_is_given_back() {
    let database = Database::with_users(5).await;
    for arguments in [&[][..], &["worker"]] {
        let api = Start::on(&database).arguments(&["serve", "--no-workers"]).service().await;
        let mut worker = Start::on(&database).sharing_output(&api).arguments(arguments).with("DRAIN_SECONDS", 1);
        if !arguments.is_empty() {
            worker = worker.with("METRICS_PORT", 0);
        }
        let mut worker = worker.service().await;
        let held = database.hold_exports().await;
        let id = api.submit("full", "a").await;
        runs(&api, &id).await;
        worker.signal(Signal::SIGTERM);
        assert_eq!(worker.exit().await, Some(0));
        assert_eq!((worker.events("draining").len(), worker.events("drain_ended").len()), (1, 1));
        let job = api.job(&id).await;
        assert_eq!(job["status"], "pending", "{job}");
        held.rollback().await.unwrap();
        let next = Start::on(&database).sharing_output(&api).service().await;
        assert_eq!(next.ended(&id).await["status"], json!("completed"));
    }
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let database = Database::with_users(5).await;
    let mut service = Start::on(&database).with("DRAIN_SECONDS", 600).service().await;
    let held = database.hold_exports().await;
    let id = service.submit("full", "a").await;
    runs(&service, &id).await;
    service.signal(Signal::SIGTERM);
    eventually("it drains", || async { service.events("draining").pop() }).await;
    service.signal(Signal::SIGINT);
    assert_eq!(service.exit().await, Some(1));
    held.rollback().await.unwrap();
}

#[tokio::test]
async fn without_exports_there_is_nothing_to_wait_for() {
    let database = Database::new().await;
    for arguments in [&[][..], &["serve", "--no-workers"]] {
        let _service = Start::on(&database).arguments(arguments).with("DRAIN_SECONDS", 600).service().await;
    }
}
