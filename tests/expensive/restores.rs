//! Databases that were put back, promoted or replaced, in more ways than the suite has time for.

#[path = "../suite/restores/cluster.rs"]
pub(crate) mod cluster;
#[path = "../suite/restores/deliveries.rs"]
mod deliveries;

use serde_json::{Value, json};

use crate::continuity::{full_heals, passes, refused};
use crate::harness::{Service, Start, needs_full, refusal, server_lacks};
use crate::restores::cluster::{Cluster, timeline};
use crate::restores::deliveries::{delivered_afterwards, exported, markers, what_was_delivered_is_missed};

/// A service on the cluster's database, with the folder of another.
fn on(cluster: &Cluster, service: &Service) -> Start {
    Start::on(&cluster.database()).sharing_output(service)
}

/// Removes what the folder knows of lanes.
fn forget_markers(service: &Service) {
    let markers = markers(service);
    assert!(!markers.is_empty(), "there were some");
    for marker in markers {
        std::fs::remove_file(marker).unwrap();
    }
}

/// An acknowledgement is a part of the database, and goes back with it: what the database doesn't know can't be
/// acknowledged, and what its consumer has to be handed again is to be acknowledged again.
#[tokio::test]
async fn what_was_acknowledged_goes_back_with_its_lane() {
    let mut cluster = Cluster::new().await;
    let mut service = exported(&cluster, &["a", "b"]).await;
    let ack = async |service: &Service, job: &Value| {
        let path = format!("/exports/{}/ack", job["jobId"].as_str().unwrap());
        service.call("POST", &path, &[]).await
    };
    let told = async |service: &Service| {
        let page: Value = service.call("GET", "/consumers", &[]).await.json().await.unwrap();
        page["items"].as_array().unwrap().iter().map(|of| of["unacknowledged"].clone()).collect::<Vec<_>>()
    };
    let (known, _) = passes(&service, "delta", "a", None).await;
    assert_eq!(ack(&service, &known).await.status(), 200);
    service.end().await;
    cluster.copy_cold().await;
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
async fn without_a_marker_another_timeline_needs_a_full_export() {
    if server_lacks("pg_basebackup").await {
        return;
    }
    let mut cluster = Cluster::new().await;
    let mut service = exported(&cluster, &["a", "b"]).await;
    service.end().await;
    // Exports without a consumer have nobody to remember them.
    let mut submitting = on(&cluster, &service).arguments(&["serve", "--no-workers"]).service().await;
    let answer = submitting.call("POST", "/exports", &[]).await;
    let ad_hoc = answer.json::<Value>().await.unwrap()["jobId"].as_str().unwrap().to_owned();
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

/// Promotes a standby that has all of its primary, or one that lags behind a delivery.
async fn promoted_standby(lags: bool) {
    let mut cluster = Cluster::new().await;
    let mut service = exported(&cluster, &["a", "b"]).await;
    let before = timeline(&cluster.database()).await;
    if lags {
        cluster.copy_hot().await;
    }
    delivered_afterwards(&cluster, &service).await;
    service.end().await;
    let mut submitting = on(&cluster, &service).arguments(&["serve", "--no-workers"]).service().await;
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
    let service = on(&cluster, &service).service().await;
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

/// A cluster that goes on after it was copied with a job in this status, whose worker has died at the failpoint.
/// Returns the job's id too. It has one row.
async fn copied_with_job(failpoint: &str, status: &str) -> (Cluster, Service, String) {
    let mut cluster = Cluster::new().await;
    let mut service = exported(&cluster, &["a"]).await;
    service.end().await;
    cluster.database().add_users(6, 6).await;
    let dying = on(&cluster, &service).with("FAILPOINTS", format!("{failpoint}=kill")).with("LEASE_SECONDS", 2);
    dying.service().await.dies_of("delta", "a", &json!({})).await;
    let id = format!("select id::text from cdc_export.jobs where status = '{status}'");
    let id: String = cluster.database().one(&id).await;
    cluster.copy_cold().await;
    let service = on(&cluster, &service).service().await;
    assert_eq!(service.ended(&id).await["rowsExported"], 1);
    (cluster, service, id)
}

#[tokio::test]
async fn a_job_that_ran_when_the_database_was_copied_is_not_taken_over() {
    let (mut cluster, mut service, id) = copied_with_job("worker.staged", "processing").await;
    service.end().await;
    cluster.put_back().await;
    let database = cluster.database();
    let service = on(&cluster, &service).service().await;
    needs_full(&service.ended(&id).await, "database_restored");
    refused(&database, &service, "delta", "a", "database_restored").await;
    full_heals(&database, &service, "a", "database_restored").await;
    service.stop().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_job_that_had_no_name_when_the_database_was_copied_hides_nothing_after_it() {
    let (mut cluster, mut service, id) = copied_with_job("worker.committed", "committed").await;
    cluster.database().add_users(7, 7).await;
    assert_eq!(passes(&service, "delta", "a", None).await.1.ids(), [7]);
    service.end().await;

    // Committed before, it is handed out again, and isn't the last that was.
    cluster.put_back().await;
    let database = cluster.database();
    let service = on(&cluster, &service).service().await;
    assert_eq!(service.ended(&id).await["status"], "completed");
    for export_type in ["incremental", "delta"] {
        refused(&database, &service, export_type, "a", "database_restored").await;
    }
    assert_eq!(service.events("marker_left")[0]["jobId"], json!(id));
    full_heals(&database, &service, "a", "database_restored").await;
    service.stop().await;
    cluster.stop().await;
}
