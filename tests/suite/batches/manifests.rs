//! The manifests of batches: what they name, when they are written, and when there is none.

use std::path::{Path, PathBuf};

use cdc_export::manifest::Manifest;
use cdc_export::manifest::batch::BatchManifest;
use serde_json::{Value, json};

use crate::batches::{TABLES, batch, ended, export_all, tables};
use crate::catalog::Catalog;
use crate::harness::{Database, Service, Start, ends, refusal, until};

const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const PUBLIC_KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

fn start(catalog: &Catalog, database: &Database) -> Start {
    catalog.start(database).with("MANIFESTS", "on").with("LEASE_SECONDS", 1)
}

/// Returns the path of a batch's manifest in the folder of the consumer `a`.
fn path(service: &Service, batch: &Value) -> PathBuf {
    let id = batch["batchId"].as_str().unwrap();
    service.output().join(format!("_batches/a/{id}.manifest.json"))
}

fn text(service: &Service, batch: &Value) -> String {
    std::fs::read_to_string(path(service, batch)).unwrap()
}

/// Returns the path of an export's manifest.
fn path_of(service: &Service, job: &Value) -> PathBuf {
    service.path(job).with_extension("manifest.json")
}

fn jobs(batch: &Value) -> &Vec<Value> {
    batch["jobs"].as_array().unwrap()
}

async fn answer(service: &Service, batch: &Value) -> reqwest::Response {
    let path = format!("/batches/{}/manifest", batch["batchId"].as_str().unwrap());
    service.ask("GET", &path, &[]).await
}

async fn verify(folder: &Path, options: &[&str]) -> (i32, String) {
    let arguments = [&["verify", folder.to_str().unwrap()], options].concat();
    let (code, said, errors) = Start::plain().arguments(&arguments).output().await;
    assert_eq!(errors, "");
    (code, said)
}

async fn is_whole(service: &Service) {
    let (code, said) = verify(service.output(), &[]).await;
    assert!(code == 0 && said.starts_with("whole: "), "{said}");
}

fn has_no_hidden_file(service: &Service) -> bool {
    service.files().iter().all(|name| !name.starts_with('.'))
}

#[tokio::test]
async fn the_manifest_of_a_batch_names_those_of_its_exports() {
    let (database, catalog) = tables().await;
    let service = start(&catalog, &database).with("MANIFEST_KEY", SEED).service().await;
    let full = export_all(&service, "full", json!({ "datasets": "*" })).await;
    database.run("update alpha set n = 1 where k = 1; update gamma set n = 1 where k = 1").await;
    let delta = export_all(&service, "delta", json!({ "datasets": "*", "skipEmpty": true })).await;
    for (batch, exported, skipped) in [(&full, vec![0, 1, 2], vec![]), (&delta, vec![0, 2], vec!["beta"])] {
        let manifest: Value = serde_json::from_str(&text(&service, batch)).unwrap();
        let mut exports = Vec::new();
        for at in &exported {
            let job = &jobs(batch)[*at];
            let of_export = Manifest::read(&std::fs::read(path_of(&service, job)).unwrap()).unwrap();
            let batch_of_export = of_export.export.batch.unwrap();
            assert_eq!(batch_of_export.id, *batch["batchId"].as_str().unwrap());
            assert_eq!(batch_of_export.datasets, exported.len().to_string());
            assert_eq!(of_export.digest, *job["digest"].as_str().unwrap());
            let number = job["number"].to_string();
            exports.push(
                json!({ "dataset": job["dataset"], "job": job["jobId"], "number": number, "digest": job["digest"] }),
            );
        }
        let found = &manifest["batch"];
        assert_eq!((&found["exports"], &found["skipped"]), (&json!(exports), &json!(skipped)));
        assert_eq!(
            (&found["id"], &found["consumer"], &found["version"]),
            (&batch["batchId"], &json!("a"), &json!("1"))
        );
        let read = BatchManifest::read(text(&service, batch).as_bytes()).unwrap();
        let at = format!("_batches/a/{}.manifest.json", batch["batchId"].as_str().unwrap());
        assert_eq!(read.check(&at, &[PUBLIC_KEY.parse().unwrap()]), Ok(()));
        let answer = answer(&service, batch).await;
        assert_eq!(answer.headers()["content-type"], "application/json");
        assert_eq!(answer.text().await.unwrap(), text(&service, batch));
    }
    // An export that was asked for alone is in no batch.
    let alone = crate::catalog::export(&service, "full", "alpha", "a").await;
    let manifest: Value = serde_json::from_slice(&std::fs::read(path_of(&service, &alone)).unwrap()).unwrap();
    assert!(manifest["export"].get("batch").is_none(), "{manifest}");
    let (code, said) = verify(service.output(), &["--public-key", PUBLIC_KEY]).await;
    assert!(code == 0 && said.starts_with("whole: 3 lanes, 6 exports, "), "{said}");
}

#[tokio::test]
async fn the_manifest_of_a_batch_is_answered_whether_or_not_it_is_written() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let full = export_all(&service, "full", json!({ "datasets": "*" })).await;
    assert!(!service.output().join("_batches").exists());
    let manifest: Value = answer(&service, &full).await.json().await.unwrap();
    let digests: Vec<_> =
        manifest["batch"]["exports"].as_array().unwrap().iter().map(|it| it["digest"].clone()).collect();
    assert_eq!(digests, jobs(&full).iter().map(|job| job["digest"].clone()).collect::<Vec<_>>());
    let skipped = export_all(&service, "delta", json!({ "datasets": "*", "skipEmpty": true })).await;
    assert_eq!(refusal(answer(&service, &skipped).await).await, (409, "no_file".to_owned()));
    let one = export_all(&service, "delta", json!({ "datasets": ["beta"] })).await;
    assert_eq!(answer(&service, &one).await.json::<Value>().await.unwrap()["batch"]["exports"][0]["dataset"], "beta");
    database.run("truncate beta").await;
    let failed = export_all(&service, "delta", json!({ "datasets": "*" })).await;
    assert_eq!(refusal(answer(&service, &failed).await).await, (409, "not_completed".to_owned()));
    let unknown = json!({ "batchId": "01900000-0000-7000-8000-000000000000" });
    assert_eq!(refusal(answer(&service, &unknown).await).await, (404, "not_found".to_owned()));
}

#[tokio::test]
async fn a_key_for_some_members_learns_nothing_from_manifests() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let full = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let walled = catalog.start(&database).with("AUTH", "keys").sharing_output(&service);
    service.stop().await;
    let arguments = ["keys", "create", "--json", "--name", "one", "--dataset", "alpha", "--scope", "export:read"];
    let (printed, _) = ends(catalog.command(&database, &arguments).await, 0, "");
    let key = serde_json::from_str::<Value>(&printed).unwrap()["key"].as_str().unwrap().to_owned();
    let walled = walled.service().await;
    let get = async |path: String| {
        walled.client.get(format!("{}{path}", walled.address)).bearer_auth(&key).send().await.unwrap()
    };
    let id = full["batchId"].as_str().unwrap();
    assert_eq!(refusal(get(format!("/batches/{id}/manifest")).await).await, (404, "not_found".to_owned()));
    let own = get(format!("/exports/{}/manifest", jobs(&full)[0]["jobId"].as_str().unwrap())).await;
    assert_eq!(own.status(), 200);
    let own = own.text().await.unwrap();
    assert!(own.contains(id) && !own.contains("beta"), "{own}");
}

/// Kills a service at a failpoint of the publication of a batch, and returns it with the batch.
async fn killed_at(place: &str, database: &Database, catalog: &Catalog) -> (Service, Value) {
    let mut doomed = start(catalog, database).with("FAILPOINTS", format!("{place}=kill")).service().await;
    let submitted = batch(&doomed, "full", json!({ "datasets": "*" })).await;
    doomed.dies().await;
    (doomed, submitted)
}

#[tokio::test]
async fn a_crash_before_the_manifest_of_a_batch_delays_it() {
    let (database, catalog) = tables().await;
    let (dead, submitted) = killed_at("publisher.last", &database, &catalog).await;
    let published = "select string_agg(dataset, ' ' order by dataset) from exports where published_at is not null";
    assert_eq!(database.one::<String>(published).await, "alpha beta");
    let manifests = dead.files().into_iter().filter(|name| name.ends_with(".manifest.json")).count();
    assert!(manifests == 3 && !dead.output().join("_batches").exists(), "{:?}", dead.files());
    let (code, said) = verify(dead.output(), &[]).await;
    assert!(code == 1 && said.contains("batch incomplete (its manifest is missing"), "{said}");
    let heir = start(&catalog, &database).sharing_output(&dead).service().await;
    let done = ended(&heir, &submitted["batchId"]).await;
    assert_eq!(done["status"], "completed", "{done}");
    assert_eq!(answer(&heir, &done).await.text().await.unwrap(), text(&heir, &done));
    is_whole(&heir).await;
}

#[tokio::test]
async fn whoever_goes_on_after_the_manifest_of_a_batch_writes_the_same() {
    for place in ["publisher.batch", "sink.batch_manifest.renamed"] {
        let (database, catalog) = tables().await;
        let (dead, submitted) = killed_at(place, &database, &catalog).await;
        let written = text(&dead, &submitted);
        let status = "select count(*) from exports where published_at is null";
        assert_eq!(database.one::<i64>(status).await, 1, "the last member is not published");
        // Another key would sign it otherwise: what is recorded stays.
        let heir = start(&catalog, &database).with("MANIFEST_KEY", SEED).sharing_output(&dead).service().await;
        let done = ended(&heir, &submitted["batchId"]).await;
        assert_eq!(done["status"], "completed", "{done}");
        assert_eq!((text(&heir, &done), answer(&heir, &done).await.text().await.unwrap()), (written.clone(), written));
        assert!(heir.events("batch_manifest_taken").is_empty());
        until("the hidden files are swept", async || has_no_hidden_file(&heir)).await;
        is_whole(&heir).await;
    }
}

/// The manifest of a batch that the database has forgotten stays, and delays nothing.
#[tokio::test]
async fn a_manifest_of_a_batch_replaces_nothing() {
    let (database, catalog) = tables().await;
    let (dead, submitted) = killed_at("publisher.last", &database, &catalog).await;
    std::fs::create_dir_all(dead.output().join("_batches/a")).unwrap();
    std::fs::write(path(&dead, &submitted), "theirs").unwrap();
    let heir = start(&catalog, &database).sharing_output(&dead).service().await;
    let done = ended(&heir, &submitted["batchId"]).await;
    assert_eq!((&done["status"], text(&heir, &done)), (&json!("completed"), "theirs".to_owned()), "{done}");
    assert_eq!(heir.events("batch_manifest_taken").len(), 1);
    assert_eq!(answer(&heir, &done).await.status(), 200);
}

/// Each batch waits for the one before it in all lanes, so they can't wait for each other.
#[tokio::test]
async fn batches_over_the_same_lanes_are_published_by_two_processes_one_after_the_other() {
    let (database, catalog) = tables().await;
    let held = start(&catalog, &database).with("WORKERS", 2).with("FAILPOINTS", "publisher.last=hold@2");
    let hold = held.hold("publisher.last");
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
        assert_eq!(answer(&other, &done).await.text().await.unwrap(), text(&other, &done));
    }
    hold.release().await;
    is_whole(&other).await;
}

/// Returns the hidden file of the export of a dataset.
async fn hidden_file(service: &Service, database: &Database, dataset: &str) -> PathBuf {
    let name: String = database.one(&format!("select staged_name from exports where dataset = '{dataset}'")).await;
    service.output().join(name)
}

#[tokio::test]
async fn a_batch_of_which_a_file_was_lost_has_no_manifest() {
    let (database, catalog) = tables().await;
    let (dead, submitted) = killed_at("worker.committed", &database, &catalog).await;
    std::fs::remove_file(hidden_file(&dead, &database, "beta").await).unwrap();
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
    assert!(!path(&heir, &failed).exists());
    assert_eq!(refusal(answer(&heir, &failed).await).await, (409, "not_completed".to_owned()));
    let waited = "select (select published_at from exports where dataset = 'gamma')
                    > (select finished_at from exports where dataset = 'beta')";
    assert!(database.one::<bool>(waited).await, "the last one waits until the others have ended");
    is_whole(&heir).await;
    // The lanes go on.
    let next = export_all(&heir, "full", json!({ "datasets": "*" })).await;
    assert_eq!(next["status"], "completed", "{next}");
    is_whole(&heir).await;
}

#[tokio::test]
async fn a_batch_whose_last_file_was_lost_loses_its_manifest() {
    let (database, catalog) = tables().await;
    let (dead, submitted) = killed_at("publisher.batch", &database, &catalog).await;
    assert!(path(&dead, &submitted).exists());
    let last: String = database.one("select output_filename from exports where dataset = 'gamma'").await;
    std::fs::remove_file(dead.output().join(last)).unwrap();
    let heir = start(&catalog, &database).sharing_output(&dead).service().await;
    let failed = ended(&heir, &submitted["batchId"]).await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("file_lost")), "{failed}");
    until("the manifest is gone", async || !path(&heir, &failed).exists()).await;
    is_whole(&heir).await;
}

#[tokio::test]
async fn verify_names_the_batch_and_what_it_lacks() {
    let (database, catalog) = tables().await;
    let service = start(&catalog, &database).service().await;
    for _ in 0..2 {
        export_all(&service, "full", json!({ "datasets": "*" })).await;
    }
    let last = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let id = last["batchId"].as_str().unwrap();
    let name = format!("_batches/a/{id}.manifest.json");
    is_whole(&service).await;
    let (manifest, of_export) = (path(&service, &last), path_of(&service, &jobs(&last)[1]));
    let whole = std::fs::read_to_string(&manifest).unwrap();
    let lines = async |options: &[&str]| {
        let (code, said) = verify(service.output(), options).await;
        assert_eq!(code, 1, "{said}");
        let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
        assert!(lines.pop().unwrap().contains(" fault"), "{said}");
        lines
    };

    // The newest manifest of a lane: no other one names it.
    let kept = std::fs::read(&of_export).unwrap();
    std::fs::remove_file(&of_export).unwrap();
    let lacks = format!("beta/a 3 {name}: batch incomplete (the manifest of this export is missing)");
    assert_eq!(lines(&[]).await, [lacks]);
    std::fs::remove_file(&manifest).unwrap();
    // Without its manifest the batch looks like one of which a file was lost.
    is_whole(&service).await;
    std::fs::write(&of_export, kept).unwrap();
    let missing =
        format!("- - {name}: batch incomplete (its manifest is missing, and those of all its exports are there)");
    assert_eq!(lines(&[]).await, [missing]);

    for (text, fault) in [
        ("no JSON".to_owned(), "unreadable (expected"),
        (whole.replace("\"skipped\":[]", "\"skipped\":[\"delta\"]"), "changed (its digest does not match its content)"),
        (whole.replace(id, "019a0000-0000-7000-8000-000000000001"), "changed ("),
    ] {
        std::fs::write(&manifest, text).unwrap();
        let lines = lines(&[]).await;
        assert!(lines.len() == 1 && lines[0].starts_with(&format!("- - {name}: {fault}")), "{lines:?}");
    }
    std::fs::write(&manifest, &whole).unwrap();
    is_whole(&service).await;
    let unsigned = lines(&["--public-key", PUBLIC_KEY]).await;
    assert_eq!(unsigned.iter().filter(|line| line.contains("_batches/") && line.ends_with(": unsigned")).count(), 3);

    // A copy of one lane alone has no part of the batches.
    let copy = tempfile::tempdir().unwrap();
    for name in service.files().iter().filter(|name| name.contains("_beta_")) {
        std::fs::copy(service.output().join(name), copy.path().join(name)).unwrap();
    }
    let (code, said) = verify(copy.path(), &[]).await;
    assert!(code == 0 && said.starts_with("whole: 1 lane, 3 exports"), "{said}");
}

/// The manifest of a batch is there as long as one that it names, and no check finds a fault meanwhile.
#[tokio::test]
async fn the_manifest_of_a_batch_goes_with_the_last_one_that_it_names() {
    let (database, catalog) = tables().await;
    let service = start(&catalog, &database).service().await;
    let first = export_all(&service, "full", json!({ "datasets": "*" })).await;
    let second = export_all(&service, "full", json!({ "datasets": ["alpha", "beta"] })).await;
    let remove = async |at: usize| {
        let path = format!("/exports/{}", jobs(&first)[at]["jobId"].as_str().unwrap());
        assert_eq!(service.call("DELETE", &path, &[]).await.status(), 204);
    };
    remove(0).await;
    remove(1).await;
    let keeping = || start(&catalog, &database).sharing_output(&service).with("RETAIN_JOBS", 1);
    let keeper = keeping().service().await;
    let is_there = |at: usize| path_of(&service, &jobs(&first)[at]).exists();
    until("manifests go", async || !is_there(0) && !is_there(1)).await;
    assert!(is_there(2) && path(&keeper, &first).exists());
    is_whole(&keeper).await;
    let rest = export_all(&keeper, "full", json!({ "datasets": ["gamma"] })).await;
    remove(2).await;
    keeper.stop().await;
    let keeper = keeping().service().await;
    until("the rest goes", async || !is_there(2) && !path(&service, &first).exists()).await;
    assert!(path(&keeper, &second).exists() && path(&keeper, &rest).exists());
    is_whole(&keeper).await;
    let recorded = "select count(*) from exports where batch_manifest is not null";
    until("it is recorded", async || database.one::<i64>(recorded).await == 2).await;
}
