//! A page of consumers, with the rows that wait for each.

use serde_json::{Value, json};

use crate::harness::Service;

pub(crate) async fn consumers(service: &Service) -> Value {
    let answer = service.call("GET", "/consumers?limit=200", &[]).await;
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

/// Rows that wait for a consumer, and whether there may be more.
pub(crate) fn waiting(page: &Value, consumer: &str) -> Value {
    let of = |item: &&Value| item["consumerId"] == consumer;
    let item = page["items"].as_array().unwrap().iter().find(of).unwrap_or_else(|| panic!("{consumer}: {page}"));
    json!([item["rowsWaiting"], item["rowsWaitingCapped"]])
}
