//! The manifests of a job's exports: each says how many exports of the job have files.

use std::path::Path;

use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export};
use crate::harness::{Database, Service, Start, needs_full};
use crate::several_datasets::{TABLES, export_all, id, killed_by_a_job, of_exports, submit, tables};

const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const PUBLIC_KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

fn start(catalog: &Catalog, database: &Database) -> Start {
    catalog.start(database).with("MANIFESTS", "on").with("LEASE_SECONDS", 1)
}

fn manifests(service: &Service) -> Vec<Value> {
    let names = service.files().into_iter().filter(|name| name.ends_with(".manifest.json"));
    names.map(|name| serde_json::from_slice(&std::fs::read(service.output().join(name)).unwrap()).unwrap()).collect()
}

/// Returns the datasets of a job's manifests in the folder. Each manifest must say this number of exports.
fn datasets(service: &Service, job: &Value, exports: usize) -> Vec<String> {
    let of_job = manifests(service).into_iter().map(|manifest| manifest["export"].clone());
    let of_job = of_job.filter(|export| export["job"]["id"] == job["jobId"]);
    let dataset = |export: Value| {
        assert_eq!(export["job"]["datasets"], exports.to_string(), "{export}");
        export["dataset"].as_str().unwrap().to_owned()
    };
    let mut datasets: Vec<_> = of_job.map(dataset).collect();
    datasets.sort();
    datasets
}

pub(super) async fn is_whole(folder: &Path, options: &[&str]) {
    let arguments = [&["verify", folder.to_str().unwrap()], options].concat();
    let (code, said, errors) = Start::plain().arguments(&arguments).output().await;
    assert!(code == 0 && said.starts_with("whole: "), "{said}{errors}");
}

#[tokio::test]
async fn each_manifest_of_a_job_counts_the_exports_with_files() {
    let (database, catalog) = tables().await;
    let service = start(&catalog, &database).with("MANIFEST_KEY", SEED).service().await;
    let full = export_all(&service, "full", json!({ "datasets": "*" })).await;
    database.run("update alpha set n = 1 where k = 1; update gamma set n = 1 where k = 1").await;
    let delta = export_all(&service, "delta", json!({ "datasets": "*", "skipEmpty": true })).await;
    assert_eq!(datasets(&service, &full, 3), TABLES);
    assert_eq!(datasets(&service, &delta, 2), ["alpha", "gamma"], "beta was skipped");
    // The request of this job has no `datasets`.
    let alone = export(&service, "full", "alpha", "a").await;
    assert!(manifests(&service).iter().any(|manifest| manifest["export"]["job"] == alone["jobId"]), "{alone}");
    is_whole(service.output(), &["--public-key", PUBLIC_KEY]).await;
}

/// Each job waits for the one before it in all lanes, so they can't wait for each other.
#[tokio::test]
async fn jobs_over_the_same_lanes_are_published_by_two_processes_one_after_the_other() {
    let (database, catalog) = tables().await;
    let held = start(&catalog, &database).with("WORKERS", 2).with("FAILPOINTS", "publisher.named=hold@4");
    let hold = held.hold("publisher.named");
    let held = held.service().await;
    let mut submitted = Vec::new();
    let sets = [json!(["alpha", "beta"]), json!(["beta", "gamma"]), json!(["gamma", "alpha"]), json!(TABLES)];
    for set in sets.iter().cycle().take(12) {
        submitted.push(submit(&held, "full", json!({ "datasets": set })).await);
    }
    hold.reached().await;
    // The second process publishes what the first one holds, and goes on with the others.
    let other = start(&catalog, &database).with("WORKERS", 2).sharing_output(&held).service().await;
    let mut numbers = std::collections::BTreeMap::<String, u64>::new();
    for job in &submitted {
        let done = other.completes(id(job)).await;
        let exports = done["exports"].as_array().unwrap();
        for export in exports {
            let number = numbers.entry(export["dataset"].as_str().unwrap().to_owned()).or_default();
            *number += 1;
            assert_eq!(export["number"], *number, "in the order in which they were asked for");
        }
        assert_eq!(datasets(&other, &done, exports.len()).len(), exports.len());
    }
    hold.release().await;
    is_whole(other.output(), &[]).await;
}

#[tokio::test]
async fn a_lost_file_fails_its_job_and_holds_up_no_other_export_of_it() {
    let (database, catalog) = tables().await;
    let mut dead = start(&catalog, &database).with("FAILPOINTS", "worker.committed=kill").service().await;
    let id = killed_by_a_job(&mut dead, &database, "full", json!({ "datasets": "*" })).await;
    let staged: String = database.one("select staged_name from cdc_export.exports where dataset = 'beta'").await;
    std::fs::remove_file(dead.output().join(staged)).unwrap();
    let heir = start(&catalog, &database).sharing_output(&dead).service().await;
    let failed = heir.ended(&id).await;
    let error = &failed["error"];
    assert_eq!([&failed["status"], &error["code"], &error["dataset"]], ["failed", "file_lost", "beta"], "{failed}");
    assert_eq!(of_exports(&failed, "number"), json!([1, null, 1]));
    let lost = &failed["exports"][1];
    assert_eq!((&lost["files"], &lost["skipped"]), (&json!([]), &json!(false)), "{lost}");
    assert_eq!(lost["continuity"], "file_lost", "{lost}");
    for (dataset, status) in [("alpha", 200), ("beta", 409), ("gamma", 200)] {
        let download = format!("/exports/{id}/download?dataset={dataset}");
        assert_eq!(heir.call("GET", &download, &[]).await.status(), status, "{dataset}");
    }
    assert_eq!(datasets(&heir, &failed, 3), ["alpha", "gamma"], "no reader finds all three");
    let are_first = "select max(published_at) < max(finished_at) filter (where dataset = 'beta') from exports";
    assert!(database.one::<bool>(are_first).await, "the others are published while the file is looked for");
    // The lanes go on, that of the lost file by a full export.
    let delta = async |dataset: &str| ended(&heir, "/exports/delta", Some("a"), json!({ "dataset": dataset })).await;
    needs_full(&delta("beta").await, "file_lost");
    assert_eq!(delta("alpha").await["status"], "completed");
    let next = export_all(&heir, "full", json!({ "datasets": "*" })).await;
    assert_eq!((&next["status"], of_exports(&next, "number")), (&json!("completed"), json!([3, 1, 2])), "{next}");
    assert_eq!(datasets(&heir, &next, 3), TABLES);
}
