//! `pull` and `apply` against a service, a folder or a bucket that somebody else controls.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::harness::{Service, Start, far, reachable_folder};
use crate::remote::with_users;

/// A service that answers as another one does, except that `change` gets the path of each call and changes its JSON.
/// Returns its address.
async fn lying(service: &Service, change: impl Fn(&str, &mut Value) + Send + Sync + 'static) -> String {
    let (client, behind, change) = (service.client.clone(), service.address.clone(), Arc::new(change));
    let handler = async move |request: Request| -> Response {
        let (head, body) = request.into_parts();
        let (path, body) = (head.uri.to_string(), axum::body::to_bytes(body, 1 << 20).await.unwrap());
        let mut passed = client.request(head.method, format!("{behind}{path}")).body(body);
        for (name, value) in head.headers.iter().filter(|(name, _)| *name != "host") {
            passed = passed.header(name, value);
        }
        let answer = passed.send().await.unwrap();
        let is_json = answer.headers().get("content-type").is_some_and(|of| of.to_str().unwrap().contains("json"));
        if !is_json {
            return Response::from(answer).map(Body::new);
        }
        let (status, mut value) = (answer.status(), answer.json().await.unwrap());
        change(&path, &mut value);
        (status, axum::Json(value)).into_response()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(handler)).await });
    address
}

fn pull(address: &str, into: &Path) -> Start {
    far(&["pull", "--consumer", "a", "--server", address, "--into", into.to_str().unwrap()])
}

/// All names below a folder, hidden ones too, except for the state and the lock of a pull.
fn names_below(folder: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            names.extend(names_below(&entry.path()).into_iter().map(|inner| format!("{name}/{inner}")));
        } else if !name.starts_with(".cdc-export-pull.") {
            names.insert(name);
        }
    }
    names
}

/// Gives the jobs in an answer another name, and files with these names.
fn rename(value: &mut Value, output: &str, files: &[&str]) {
    let jobs = match value.get_mut("items") {
        Some(Value::Array(items)) => items.iter_mut().collect(),
        _ => vec![value],
    };
    for job in jobs.into_iter().filter(|job| job.get("outputFilename").is_some()) {
        job["outputFilename"] = json!(output);
        let file = job["files"][0].clone();
        let named = |name: &&str| {
            let mut file = file.clone();
            file["name"] = json!(name);
            file
        };
        job["files"] = files.iter().map(named).collect();
    }
}

/// Of an export of several files only the file names were checked, and the name of the manifest was not.
#[tokio::test]
async fn a_service_chooses_no_folder_for_what_is_pulled() {
    let (_database, service) = with_users(5).await;
    service.export("full", "a").await;
    let outside = tempfile::tempdir().unwrap();
    let absolute = outside.path().join("evil.csv").to_str().unwrap().to_owned();
    let long = format!("{}.csv", "a".repeat(300));
    for name in [
        "../evil.csv",
        "sub/evil.csv",
        &absolute,
        ".profile.csv",
        ".csv",
        "evil\0.csv",
        "evil\n.csv",
        "..\\evil.csv",
        "nul.csv",
        &long,
    ] {
        for files in [vec!["one.csv", "two.csv"], vec![name], vec![name, name]] {
            let folder = reachable_folder();
            let into = folder.path().join("inbox");
            fs::create_dir(folder.path().join("sub")).unwrap();
            let (output, names) = (name.to_owned(), files.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
            let server = lying(&service, move |path, value| {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                if path.ends_with("/manifest") {
                    let file = value["export"]["files"][0].clone();
                    value["export"]["files"] = vec![file; names.len()].into();
                    value["digest"] = json!(crate::manifests::digest_of(value));
                } else {
                    rename(value, &output, &names);
                }
            })
            .await;
            let (code, printed, said) = pull(&server, &into).output().await;
            assert!(code == 1 && printed.is_empty() && said.contains("is no name of a file"), "{files:?}: {said}");
            assert_eq!(names_below(folder.path()), BTreeSet::new(), "{name:?} {files:?}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{name:?} {files:?}");
        }
    }
    // Names that are plain, and aren't those of one export.
    for files in [vec!["one.csv", "two.csv"], vec!["evil.manifest.json"], vec!["evil.part-00001.csv"; 2]] {
        let folder = reachable_folder();
        let server = lying(&service, move |path, value| {
            if !path.ends_with("/manifest") {
                rename(value, "evil.csv", &files);
            }
        })
        .await;
        let (code, printed, said) = pull(&server, folder.path()).output().await;
        assert!(code == 1 && printed.is_empty() && said.contains("none of its files can be called"), "{said}");
        assert_eq!(names_below(folder.path()), BTreeSet::new());
    }
    service.stop().await;
}

/// Another user with write access to the folder can write a state.
#[tokio::test]
async fn a_state_names_no_file_of_another_folder() {
    let (_database, service) = with_users(5).await;
    let (job, _) = service.export("full", "a").await;
    let position = json!({ "jobId": job["jobId"], "number": 1, "digest": job["digest"], "sha256": job["sha256"] });
    let state = |naming: Value| {
        json!({
            "version": 1, "consumer": "a", "dataset": "users", "source": null, "last": null, "naming": naming
        })
    };
    let folder = reachable_folder();
    let into = folder.path().join("inbox");
    fs::create_dir(&into).unwrap();
    let hidden = format!(".evil.csv.{}.part", job["jobId"].as_str().unwrap());
    for at in [&into, folder.path()] {
        fs::write(at.join(&hidden), "mine").unwrap();
    }
    let before = names_below(folder.path());
    for naming in [
        json!({ "position": position, "name": "../evil.csv", "files": 1 }),
        json!({ "position": position, "name": ".evil.csv", "files": 1 }),
        json!({ "position": position, "name": "evil.csv", "files": 1_000_000_000 }),
        json!({ "position": position, "name": "evil.csv", "files": 0 }),
        json!({ "position": position, "names": ["../evil.csv"] }),
    ] {
        fs::write(into.join(".cdc-export-pull.json"), state(naming.clone()).to_string()).unwrap();
        let (code, printed, said) = pull(&service.address, &into).output().await;
        assert!(code == 1 && printed.is_empty(), "{naming}: {said}");
        assert_eq!(names_below(folder.path()), before, "{naming}: {said}");
    }
    service.stop().await;
}
