//! The manifests of a batch's exports: each says how many exports of the batch have files.

use std::path::{Path, PathBuf};

use cdc_export::manifest::Manifest;
use serde_json::{Value, json};

use crate::batches::{TABLES, batch, ended, export_all, tables};
use crate::catalog::Catalog;
use crate::harness::{Database, Service, Start, ends, until};

const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const PUBLIC_KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

fn start(catalog: &Catalog, database: &Database) -> Start {
    catalog.start(database).with("MANIFESTS", "on").with("LEASE_SECONDS", 1)
}

/// Returns the path of an export's manifest.
fn path(service: &Service, job: &Value) -> PathBuf {
    service.path(job).with_extension("manifest.json")
}

fn jobs(batch: &Value) -> &Vec<Value> {
    batch["jobs"].as_array().unwrap()
}

/// Returns the datasets of a batch's manifests that are in the folder. Each must say this number of exports.
fn datasets(service: &Service, batch: &Value, exports: usize) -> Vec<String> {
    let manifests = service.files().into_iter().filter(|name| name.ends_with(".manifest.json"));
    let read = |name: String| Manifest::read(&std::fs::read(service.output().join(name)).unwrap()).unwrap().export;
    let of_batch = manifests.map(read).filter_map(|export| {
        let member = export.batch.filter(|member| batch["batchId"] == member.id)?;
        assert_eq!(member.datasets, exports.to_string());
        Some(export.dataset)
    });
    let mut datasets: Vec<_> = of_batch.collect();
    datasets.sort();
    datasets
}

async fn is_whole(folder: &Path, options: &[&str]) {
    let arguments = [&["verify", folder.to_str().unwrap()], options].concat();
    let (code, said, errors) = Start::plain().arguments(&arguments).output().await;
    assert!(code == 0 && said.starts_with("whole: "), "{said}{errors}");
}

/// Kills a service at a failpoint of the publication of a batch, and returns it with the batch.
async fn killed_at(place: &str, database: &Database, catalog: &Catalog) -> (Service, Value) {
    let mut doomed = start(catalog, database).with("FAILPOINTS", format!("{place}=kill")).service().await;
    let submitted = batch(&doomed, "full", json!({ "datasets": "*" })).await;
    doomed.dies().await;
    (doomed, submitted)
}

#[tokio::test]
async fn each_manifest_of_a_batch_counts_the_exports_with_files() {
    let (database, catalog) = tables().await;
    let service = start(&catalog, &database).with("MANIFEST_KEY", SEED).service().await;
    let full = export_all(&service, "full", json!({ "datasets": "*" })).await;
    database.run("update alpha set n = 1 where k = 1; update gamma set n = 1 where k = 1").await;
    let delta = export_all(&service, "delta", json!({ "datasets": "*", "skipEmpty": true })).await;
    assert_eq!(datasets(&service, &full, 3), TABLES);
    assert_eq!(datasets(&service, &delta, 2), ["alpha", "gamma"], "beta was skipped");
    // An export that was asked for alone is in no batch.
    let alone = crate::catalog::export(&service, "full", "alpha", "a").await;
    let manifest: Value = serde_json::from_slice(&std::fs::read(path(&service, &alone)).unwrap()).unwrap();
    assert!(manifest["export"].get("batch").is_none(), "{manifest}");
    is_whole(service.output(), &["--public-key", PUBLIC_KEY]).await;
}

#[tokio::test]
async fn a_key_for_some_members_learns_nothing_of_others_from_manifests() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let full = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let walled = catalog.start(&database).with("AUTH", "keys").sharing_output(&service);
    service.stop().await;
    let arguments = ["keys", "create", "--json", "--name", "one", "--dataset", "alpha", "--scope", "export:read"];
    let (printed, _) = ends(catalog.command(&database, &arguments).await, 0, "");
    let key = serde_json::from_str::<Value>(&printed).unwrap()["key"].as_str().unwrap().to_owned();
    let walled = walled.service().await;
    let path = format!("/exports/{}/manifest", jobs(&full)[0]["jobId"].as_str().unwrap());
    let own = walled.call("GET", &path, &[("Authorization", &format!("Bearer {key}"))]).await;
    assert_eq!(own.status(), 200);
    let own = own.text().await.unwrap();
    assert!(own.contains(full["batchId"].as_str().unwrap()) && !own.contains("beta"), "{own}");
}

#[tokio::test]
async fn a_crash_between_the_manifests_of_a_batch_delays_the_others() {
    for place in ["publisher.named", "sink.manifest.renamed"] {
        let (database, catalog) = tables().await;
        let (dead, submitted) = killed_at(place, &database, &catalog).await;
        // Another key would sign them otherwise: the manifests that the commit recorded stay.
        let heir = start(&catalog, &database).with("MANIFEST_KEY", SEED).sharing_output(&dead).service().await;
        let done = ended(&heir, &submitted["batchId"]).await;
        assert_eq!(done["status"], "completed", "{place}: {done}");
        assert_eq!(datasets(&heir, &done, 3), TABLES, "{place}");
        for job in jobs(&done) {
            let call = format!("/exports/{}/manifest", job["jobId"].as_str().unwrap());
            let answer = heir.ask("GET", &call, &[]).await.text().await.unwrap();
            assert_eq!(answer, std::fs::read_to_string(path(&heir, job)).unwrap(), "{place}");
            assert!(!answer.contains("\"signature\""), "{place}: {answer}");
        }
        let has_hidden_file = || heir.files().iter().any(|name| name.starts_with('.'));
        until("the hidden files are swept", async || !has_hidden_file()).await;
        is_whole(heir.output(), &[]).await;
    }
}

/// Each batch waits for the one before it in all lanes, so they can't wait for each other.
#[tokio::test]
async fn batches_over_the_same_lanes_are_published_by_two_processes_one_after_the_other() {
    let (database, catalog) = tables().await;
    let held = start(&catalog, &database).with("WORKERS", 2).with("FAILPOINTS", "publisher.named=hold@4");
    let hold = held.hold("publisher.named");
    let held = held.service().await;
    let mut submitted = Vec::new();
    let sets = [json!(["alpha", "beta"]), json!(["beta", "gamma"]), json!(["gamma", "alpha"]), json!(TABLES)];
    for set in sets.iter().cycle().take(12) {
        submitted.push(batch(&held, "full", json!({ "datasets": set })).await);
    }
    hold.reached().await;
    // The second process publishes what the first one holds, and goes on with the others.
    let other = start(&catalog, &database).with("WORKERS", 2).sharing_output(&held).service().await;
    let mut numbers = std::collections::BTreeMap::<String, u64>::new();
    for batch in &submitted {
        let done = ended(&other, &batch["batchId"]).await;
        assert_eq!(done["status"], "completed", "{done}");
        for job in jobs(&done) {
            let number = numbers.entry(job["dataset"].as_str().unwrap().to_owned()).or_default();
            *number += 1;
            assert_eq!(job["number"], *number, "in the order in which they were asked for");
        }
        let exports = jobs(&done).len();
        assert_eq!(datasets(&other, &done, exports).len(), exports);
    }
    hold.release().await;
    is_whole(other.output(), &[]).await;
}

#[tokio::test]
async fn a_lost_file_is_counted_and_holds_up_no_other_export_of_the_batch() {
    let (database, catalog) = tables().await;
    let (dead, submitted) = killed_at("worker.committed", &database, &catalog).await;
    let staged: String = database.one("select staged_name from exports where dataset = 'beta'").await;
    std::fs::remove_file(dead.output().join(staged)).unwrap();
    let heir = start(&catalog, &database).sharing_output(&dead).service().await;
    let failed = ended(&heir, &submitted["batchId"]).await;
    let ends: Vec<_> = jobs(&failed).iter().map(|job| (&job["status"], &job["error"]["code"])).collect();
    let [completed, lost] = [json!("completed"), json!("failed")];
    assert_eq!(
        ends,
        [(&completed, &Value::Null), (&lost, &json!("file_lost")), (&completed, &Value::Null)],
        "{failed}"
    );
    assert_eq!((&failed["status"], &failed["error"]["member"]), (&json!("failed"), &json!("beta")));
    assert_eq!(datasets(&heir, &failed, 3), ["alpha", "gamma"], "no reader finds all three");
    let are_first = "select max(published_at) < max(finished_at) filter (where dataset = 'beta') from exports";
    assert!(database.one::<bool>(are_first).await, "the others are published while the file is looked for");
    // The lanes go on.
    let next = export_all(&heir, "full", json!({ "datasets": "*" })).await;
    assert_eq!(next["status"], "completed", "{next}");
    assert_eq!(datasets(&heir, &next, 3), TABLES);
}
