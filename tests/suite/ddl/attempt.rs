//! Exports of a table that DDL has changed, and the word that they have for it.

use serde_json::{Value, json};

use crate::catalog::ended;
use crate::harness::Service;

/// An export that completes, or needs a full one.
pub(crate) async fn attempt(service: &Service, export_type: &str, dataset: &str, consumer: &str) -> Value {
    let job = ended(service, &format!("/exports/{export_type}"), Some(consumer), json!({ "dataset": dataset })).await;
    if job["status"] != "completed" {
        assert_eq!(job["error"]["code"], "full_export_needed", "{job}");
        assert!(export_type != "full" && !job["continuity"].is_null(), "{job}");
    }
    job
}

pub(crate) fn word(job: &Value) -> Option<String> {
    job["continuity"].as_str().map(str::to_owned)
}

/// Returns the word of `GET /consumers` for a consumer's first dataset.
pub(crate) async fn told(service: &Service, consumer: &str) -> Option<String> {
    let path = format!("/consumers?limit=1&cursor={consumer}/a");
    let consumers: Value = service.call("GET", &path, &[]).await.json().await.unwrap();
    assert_eq!(consumers["items"][0]["consumerId"], consumer, "{consumers}");
    word(&consumers["items"][0])
}
