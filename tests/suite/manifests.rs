//! Manifests: what stands beside the files, the chain that they are, and what becomes of it after a crash and beside
//! others' files.

use std::path::PathBuf;

use futures_util::future::join_all;
use ring::digest;
use serde_json::{Value, json};

use crate::crashes::killed_by_an_export;
use crate::harness::{Database, Service, Start, refusal, until};

fn path(service: &Service, job: &Value) -> PathBuf {
    let stem = job["outputFilename"].as_str().unwrap().strip_suffix(".csv").unwrap();
    service.output().join(format!("{stem}.manifest.json"))
}

fn read(service: &Service, job: &Value) -> Value {
    let path = path(service, job);
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))).unwrap()
}

async fn answer(service: &Service, job: &Value, query: &str) -> reqwest::Response {
    service.call("GET", &format!("/exports/{}/manifest{query}", job["jobId"].as_str().unwrap()), &[]).await
}

/// The digest as anybody computes it: no member of `export` is a number, so sorted members without spaces are the
/// canonical form.
fn digest_of(manifest: &Value) -> String {
    fn canonical(value: &Value) -> String {
        match value {
            Value::Object(members) => {
                let mut sorted: Vec<_> = members.iter().filter(|(name, _)| *name != "path").collect();
                sorted.sort_by_key(|(name, _)| *name);
                let members = sorted.iter().map(|(name, value)| format!("{}:{}", json!(name), canonical(value)));
                format!("{{{}}}", members.collect::<Vec<_>>().join(","))
            }
            Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
            other => other.to_string(),
        }
    }
    hex::encode(digest::digest(&digest::SHA256, canonical(&manifest["export"]).as_bytes()))
}

#[tokio::test]
async fn each_export_of_a_lane_names_its_files_and_the_export_before() {
    let database = Database::with_users(5).await;
    let service = Start::on(&database).with("MANIFESTS", "on").service().await;
    let mut before = Value::Null;
    for (number, export_type) in (1..).zip(["full", "incremental", "delta", "full", "delta"]) {
        database.add_users(number * 10, number * 10 + 2).await;
        let (job, file) = service.export(export_type, "a").await;
        let manifest = read(&service, &job);
        assert_eq!(manifest["number"], number);
        assert_eq!((&manifest["digest"], &manifest["digest"]), (&job["digest"], &json!(digest_of(&manifest))));
        let rows = file.rows.len();
        let entry = json!({
            "url": job["location"], "mandatory": true, "meta": { "content_length": job["bytesWritten"], "record_count": rows },
        });
        assert_eq!(manifest["entries"], json!([entry]));
        assert_eq!(manifest["meta"], json!({ "content_length": job["bytesWritten"], "record_count": rows }));
        let export = &manifest["export"];
        assert_eq!(export["previous"], before, "{export_type}");
        assert_eq!(
            export["files"],
            json!([{
                "sha256": job["sha256"], "bytes": job["bytesWritten"].to_string(), "rows": rows.to_string(), "path": job["outputFilename"],
            }])
        );
        for (member, value) in [
            ("version", json!("1")),
            ("job", job["jobId"].clone()),
            ("consumer", json!("a")),
            ("dataset", json!("users")),
            ("table", json!("public.users")),
            ("type", json!(export_type)),
            ("key", json!(["id"])),
            ("format", json!("csv")),
            ("compression", json!("none")),
            ("continuity", Value::Null),
            ("watermarkFrom", job["watermarkFrom"].clone()),
            ("watermarkTo", job["watermarkTo"].clone()),
            ("rows", json!(rows.to_string())),
        ] {
            assert_eq!(export[member], value, "{member}");
        }
        let names: Vec<_> = export["columns"].as_array().unwrap().iter().map(|column| &column["name"]).collect();
        assert_eq!(json!(names), json!(file.header));
        assert!(export["snapshot"].as_str().unwrap().matches(':').count() == 2, "{export}");
        assert_eq!(answer(&service, &job, "").await.text().await.unwrap(), manifest_text(&service, &job));
        let uris = answer(&service, &job, "?as=uris").await;
        assert_eq!(uris.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!(uris.text().await.unwrap(), format!("{}\n", job["location"].as_str().unwrap()));
        before = job["digest"].clone();
    }
    // Another lane has a chain of its own, and what is nobody's has none.
    let (other, _) = service.export("full", "b").await;
    assert_eq!(read(&service, &other)["number"], 1);
    assert_eq!(read(&service, &other)["export"]["previous"], Value::Null);
    let ad_hoc: Value = service.call("POST", "/exports", &[]).await.json().await.unwrap();
    let ad_hoc = service.ended(ad_hoc["jobId"].as_str().unwrap()).await;
    assert_eq!(ad_hoc["digest"], Value::Null);
    assert_eq!(refusal(answer(&service, &ad_hoc, "").await).await, (409, "no_manifest".to_owned()));
    assert_eq!(refusal(answer(&service, &other, "?as=json").await).await, (400, "parameter_invalid".to_owned()));
    assert_eq!(service.files().len(), 6 * 2 + 1);
}

fn manifest_text(service: &Service, job: &Value) -> String {
    std::fs::read_to_string(path(service, job)).unwrap()
}

/// The chain goes on whether or not manifests are written.
#[tokio::test]
async fn in_a_folder_none_is_written_unless_it_is_asked_for() {
    let database = Database::new().await;
    let off = Start::on(&database).service().await;
    let (first, _) = off.export("full", "a").await;
    assert_eq!(off.files().len(), 1);
    let text = answer(&off, &first, "").await.text().await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["digest"], first["digest"]);
    let on = Start::on(&database).with("MANIFESTS", "on").sharing_output(&off);
    off.stop().await;
    let on = on.service().await;
    let (second, _) = on.export("delta", "a").await;
    assert_eq!(read(&on, &second)["export"]["previous"], first["digest"]);
    // Retention or a client removes only the file. Its manifest stays for ever, and says that there was one.
    let id = second["jobId"].as_str().unwrap();
    assert_eq!(on.call("DELETE", &format!("/exports/{id}"), &[]).await.status(), 204);
    assert_eq!(read(&on, &second)["digest"], second["digest"]);
    assert_eq!(answer(&on, &second, "").await.status(), 200);
}

#[tokio::test]
async fn a_manifest_is_signed_with_the_services_key() {
    let database = Database::new().await;
    let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    let service = Start::on(&database).with("MANIFESTS", "on").with("MANIFEST_KEY", seed).service().await;
    let (job, _) = service.export("full", "a").await;
    let manifest = read(&service, &job);
    let public = hex::decode("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a").unwrap();
    let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, public);
    // Anybody can build the signed bytes like this: the canonical form of four members.
    let signed = format!(
        r#"{{"digest":{},"locations":[{{"path":{},"url":{}}}],"number":"1","version":"2"}}"#,
        manifest["digest"], manifest["export"]["files"][0]["path"], manifest["entries"][0]["url"]
    );
    assert_eq!(manifest["signatureVersion"], "2");
    key.verify(signed.as_bytes(), &hex::decode(manifest["signature"].as_str().unwrap()).unwrap()).unwrap();
    let public = service.events("manifests_signed")[0]["publicKey"].as_str().unwrap().to_owned();
    let verify = async |key: &str| {
        let folder = service.output().to_str().unwrap();
        Start::plain().arguments(&["verify", "--public-key", key, folder]).output().await
    };
    let (code, said, errors) = verify(&public).await;
    assert!(code == 0 && said.starts_with("whole: 1 lane, 1 export, 1 file,"), "{said}{errors}");
    let (code, said, _) = verify("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c").await;
    assert!(code == 1 && said.contains("changed (its signature is not by this key)"), "{said}");
    service.stop().await;
    for (name, value, line) in [
        ("MANIFESTS", "yes", "MANIFESTS: `yes` is neither on nor off"),
        ("MANIFEST_KEY", "secret", "MANIFEST_KEY: 64 hexadecimal digits are expected"),
    ] {
        let (code, said) = Start::on(&database).with(name, value).until_it_ends().await;
        assert!(code == 2 && said.contains(line) && !said.contains("`secret`"), "{said}");
    }
}

#[tokio::test]
async fn what_the_service_leaves_is_whole_until_somebody_harms_it() {
    let database = Database::with_users(5).await;
    let service = Start::on(&database).with("MANIFESTS", "on").service().await;
    let mut jobs = Vec::new();
    for (number, export_type) in (1..).zip(["full", "delta", "full", "delta", "incremental"]) {
        database.add_users(number * 10, number * 10 + 2).await;
        jobs.push(service.export(export_type, "a").await.0);
    }
    service.export("full", "b").await;
    let verify = async || {
        let folder = service.output().to_str().unwrap();
        let (code, said, errors) = Start::plain().arguments(&["verify", folder]).output().await;
        assert!(errors.is_empty(), "{errors}");
        (code, said)
    };
    let (code, said) = verify().await;
    assert!(code == 0 && said.starts_with("whole: 2 lanes, 6 exports, 6 files"), "{said}");
    let delete = async |job: &Value| {
        let path = format!("/exports/{}", job["jobId"].as_str().unwrap());
        assert_eq!(service.call("DELETE", &path, &[]).await.status(), 204);
    };
    delete(&jobs[1]).await;
    let (code, said) = verify().await;
    assert!(code == 0 && said.contains("1 older file gone"), "older than the newest full export: {said}");
    delete(&jobs[3]).await;
    let (code, said) = verify().await;
    let name = jobs[3]["outputFilename"].as_str().unwrap();
    assert!(code == 1 && said.starts_with(&format!("users/a 4 {name}: missing\n1 fault: ")), "{said}");
    std::fs::remove_file(path(&service, &jobs[3])).unwrap();
    let (code, said) = verify().await;
    assert!(code == 1 && said.contains("gap after 3"), "{said}");
}

/// A file or a manifest of somebody else's under the name of ours stays, and both of ours get another.
#[tokio::test]
async fn a_manifest_replaces_nothing() {
    let database = Database::new().await;
    let mut dead = Start::on(&database).with("FAILPOINTS", "worker.committed=kill").service().await;
    let id = killed_by_an_export(&database, &mut dead).await;
    let job = json!({ "outputFilename": database.one::<String>("select output_filename from exports").await });
    let theirs = path(&dead, &job);
    std::fs::write(&theirs, "theirs").unwrap();
    let heir = Start::on(&database).with("MANIFESTS", "on").sharing_output(&dead).service().await;
    let job = heir.ended(&id).await;
    assert!(job["outputFilename"].as_str().unwrap().ends_with("-2.csv"), "{job}");
    assert_eq!(read(&heir, &job)["export"]["files"][0]["path"], job["outputFilename"]);
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "theirs");
}

#[tokio::test]
async fn whoever_goes_on_after_a_crash_writes_the_same_manifest() {
    let faults = [
        // The first small file is the marker; the second is the manifest.
        "sink.drafted=kill",
        "sink.drafted=kill@2",
        "publisher.named=kill",
        "sink.manifest=kill",
        "sink.manifest.renamed=kill",
    ];
    join_all(faults.map(dies_at)).await;
}

/// A crash between the files' names and the manifest's, or between that and its record.
async fn dies_at(fault: &str) {
    let database = Database::new().await;
    let start = || Start::on(&database).with("MANIFESTS", "on");
    let mut dead = start().with("FAILPOINTS", fault).service().await;
    let id = killed_by_an_export(&database, &mut dead).await;
    // The commit has recorded it.
    let written: String = database.one("select manifest from cdc_export.exports").await;
    // Another key would sign it otherwise: what is written down stands.
    let heir = start().with("MANIFEST_KEY", "00".repeat(32)).sharing_output(&dead).service().await;
    let job = heir.completes(&id).await;
    assert_eq!(written, manifest_text(&heir, &job), "{fault}");
    until("nothing else is there", async || heir.files().len() == 2).await;
    let (next, _) = heir.export("delta", "a").await;
    assert_eq!(read(&heir, &next)["export"]["previous"], job["digest"], "{fault}");
}

#[tokio::test]
async fn a_manifest_that_fails_is_written_later() {
    join_all(["sink.drafted=error@2", "sink.manifest=error", "sink.manifest.renamed=error"].map(fails_at)).await;
}

/// An error of the destination, not a crash: the service itself goes on.
async fn fails_at(fault: &str) {
    let database = Database::new().await;
    let service = Start::on(&database).with("MANIFESTS", "on").with("FAILPOINTS", fault).service().await;
    let (job, _) = service.export("full", "a").await;
    assert_eq!(read(&service, &job)["digest"], job["digest"], "{fault}");
    assert_eq!(service.events("publish_failed").len(), 1, "{fault}");
    assert_eq!(service.files().len(), 2, "{fault}");
}

/// Maintenance publishes what a slow worker is publishing, and the sweep takes the worker's hidden file for nobody's.
#[tokio::test]
async fn a_worker_that_was_overtaken_reports_no_failure() {
    let database = Database::new().await;
    let start = || Start::on(&database).with("MANIFESTS", "on");
    let slow = start().with("WORKERS", 1).with("FAILPOINTS", "sink.drafted=hold@2").service().await;
    let id = slow.submit("full", "a").await;
    slow.reaches("sink.drafted").await;
    let quick = start().sharing_output(&slow).service().await;
    assert_eq!(quick.ended(&id).await["status"], "completed");
    until("the hidden file is swept", async || slow.files().len() == 2).await;
    quick.stop().await;
    slow.release("sink.drafted").await;
    // The same worker runs the next export.
    slow.export("full", "b").await;
    assert_eq!(slow.events("publish_failed"), [] as [Value; 0]);
}
