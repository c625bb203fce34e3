//! Exports of a cluster before and after a backup, and the markers that a folder has of them.

use std::path::PathBuf;

use serde_json::json;

use crate::continuity::{full_heals, passes, refused};
use crate::harness::{Database, Service, Start};
use crate::restores::cluster::Cluster;

/// A service on a cluster with some users, all of them exported to these consumers.
pub(crate) async fn exported(cluster: &Cluster, consumers: &[&str]) -> Service {
    let database = cluster.database();
    let start = Start::on(&database).with("SEED_ROWS", 0).service().await;
    database.add_users(1, 5).await;
    for consumer in consumers {
        passes(&start, "full", consumer, None).await;
    }
    start
}

/// Delivers exports to `a` and to a new consumer `late`, and to nobody else, after a backup.
pub(crate) async fn delivered_afterwards(cluster: &Cluster, service: &Service) {
    cluster.database().add_users(6, 6).await;
    assert_eq!(passes(service, "delta", "a", None).await.1.ids(), [6]);
    passes(service, "full", "late", None).await;
}

pub(crate) async fn what_was_delivered_is_missed(database: &Database, service: &Service) {
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

/// The markers that a service has in its folder.
pub(crate) fn markers(service: &Service) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(service.output()).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(".lane-")).collect()
}
