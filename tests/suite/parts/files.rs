//! An export in several files: the request for it, and its files.

use std::path::PathBuf;

use serde_json::Value;

use crate::harness::{Csv, Service};

pub(crate) const MOST: u64 = 16 << 20;
/// A value has so many bytes, which no compressor makes less than half of.
pub(crate) const VALUE: usize = 1 << 20;

pub(crate) async fn submit(service: &Service, export_type: &str, options: Value) -> String {
    let answer = service.post(&format!("/exports/{export_type}"), &[("X-Consumer-ID", "a")], &options).await;
    assert_eq!(answer.status(), 202, "{}", answer.text().await.unwrap());
    answer.json::<Value>().await.unwrap()["jobId"].as_str().unwrap().to_owned()
}

pub(crate) fn files(job: &Value) -> &Vec<Value> {
    job["files"].as_array().unwrap()
}

pub(crate) fn names(job: &Value) -> Vec<&str> {
    files(job).iter().map(|file| file["name"].as_str().unwrap()).collect()
}

pub(crate) fn paths(service: &Service, job: &Value) -> Vec<PathBuf> {
    names(job).iter().map(|name| service.output().join(name)).collect()
}

/// The ids of all files, each of which is a whole CSV.
pub(crate) fn ids(service: &Service, job: &Value) -> Vec<i64> {
    let mut ids: Vec<i64> = paths(service, job).iter().flat_map(|path| Csv::read(path).ids()).collect();
    ids.sort_unstable();
    ids
}
