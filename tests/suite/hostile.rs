//! `pull` and `apply` against a service, a folder or a bucket that somebody else controls.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use cdc_manifest::Manifest;
use serde_json::{Value, json};

use crate::apply::pair::Pair;
use crate::catalog::export;
use crate::harness::{
    Database, HANG_TIMEOUT, Service, Start, ends, far, passed_on, reachable_folder, serving, serving_users, silent,
};

/// Starts a service that answers like another one, except that `change` gets the path of each call and changes its
/// JSON. Returns its address.
pub(crate) async fn lying(service: &Service, change: impl Fn(&str, &mut Value) + Send + Sync + 'static) -> String {
    let (client, behind, change) = (service.client.clone(), service.address.clone(), Arc::new(change));
    let handler = async move |request: Request| -> Response {
        let path = request.uri().to_string();
        // Whichever file is asked for, the only one is sent.
        let mut request = request;
        if let Some((job, _)) = path.split_once("/files/") {
            *request.uri_mut() = format!("{job}/download").parse().unwrap();
        }
        let answer = passed_on(&client, &behind, request).await;
        let is_json = answer.headers().get("content-type").is_some_and(|of| of.to_str().unwrap().contains("json"));
        if !is_json {
            return Response::from(answer).map(Body::new);
        }
        let (status, mut value) = (answer.status(), answer.json().await.unwrap());
        change(&path, &mut value);
        (status, axum::Json(value)).into_response()
    };
    serving(axum::Router::new().fallback(handler)).await
}

fn pull(address: &str, into: &Path) -> Start {
    let into = into.to_str().unwrap();
    far(&["pull", "--consumer", "a", "--dataset", "users", "--server", address, "--into", into])
}

/// Returns all names below a folder, hidden ones too, except the state and the lock of a pull.
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

/// Gives the jobs in an answer another name, files with these names, and another manifest.
fn rename(value: &mut Value, output: &str, files: &[&str], manifest: &Value) {
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
        job["digest"] = manifest["digest"].clone();
    }
}

/// Returns the manifest with this number of copies of its first file.
fn with_files(manifest: &Value, count: usize) -> Value {
    let Manifest { number, mut export, entries, .. } = Manifest::read(manifest.to_string().as_bytes()).unwrap();
    export.files = vec![export.files[0].clone(); count];
    serde_json::to_value(Manifest::new(number, export, vec![entries[0].url.clone(); count])).unwrap()
}

/// The name of the manifest follows from the service's answer, too, like the names of the files.
#[tokio::test]
async fn a_service_chooses_no_folder_for_what_is_pulled() {
    let (_database, service) = serving_users(5).await;
    service.export("full", "a").await;
    let manifest = service.manifest(&service.get("/exports?consumer=a").await["items"][0]).await;
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
            let real = manifest.clone();
            let server = lying(&service, move |path, value| {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                if path.contains("/manifest") {
                    *value = with_files(value, names.len());
                } else {
                    rename(value, &output, &names, &with_files(&real, names.len()));
                }
            })
            .await;
            assert_eq!(ends(pull(&server, &into).output().await, 1, "is no name of a file").0, "", "{files:?}");
            assert_eq!(names_below(folder.path()), BTreeSet::new(), "{name:?} {files:?}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{name:?} {files:?}");
        }
    }
    // Names that are plain, and aren't those of one export.
    for files in [vec!["one.csv", "two.csv"], vec!["evil.manifest.json"], vec!["evil.part-00001.csv"; 2]] {
        let folder = reachable_folder();
        let real = manifest.clone();
        let server = lying(&service, move |path, value| match path.contains("/manifest") {
            true => *value = with_files(value, files.len()),
            false => rename(value, "evil.csv", &files, &with_files(&real, files.len())),
        })
        .await;
        assert_eq!(ends(pull(&server, folder.path()).output().await, 1, "none of its files can be called").0, "");
        assert_eq!(names_below(folder.path()), BTreeSet::new());
    }
}

#[tokio::test]
async fn datasets_get_no_folder_elsewhere() {
    let (_database, service) = serving_users(5).await;
    service.export("full", "a").await;
    let outside = tempfile::tempdir().unwrap();
    let absolute = outside.path().join("evil").to_str().unwrap().to_owned();
    for name in ["../evil", "", ".", "..", ".hidden", "sub/evil", "evil\n", "nul", &absolute, "linked"] {
        let folder = reachable_folder();
        let into = folder.path().join("inbox");
        fs::create_dir_all(into.join("sub")).unwrap();
        symlink(outside.path(), into.join("linked")).unwrap();
        let named = name.to_owned();
        let server = lying(&service, move |path, value| {
            if path == "/datasets" {
                let mut other = value["items"][0].clone();
                other["name"] = json!(named);
                value["items"].as_array_mut().unwrap().push(other);
            }
        })
        .await;
        let into = into.to_str().unwrap();
        let call = ["pull", "--consumer", "a", "--all-datasets", "--server", &server, "--into", into];
        let (code, printed, said) = far(&call).output().await;
        assert_eq!((code, printed.lines().count()), (1, 1), "{name:?}: {said}");
        assert!(said.contains("1 of 2 datasets failed") && said.lines().count() == 2, "{name:?}: {said}");
        let found = names_below(folder.path());
        assert!(found.iter().all(|it| it.starts_with("inbox/users/") || it == "inbox/linked"), "{name:?}: {found:?}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "{name:?}");
    }
}

/// Another user with write access to the folder can write a state.
#[tokio::test]
async fn a_state_names_no_file_of_another_folder() {
    let (_database, service) = serving_users(5).await;
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
}

/// Returns the seed of a signing key and its public half.
fn signing_key(byte: &str) -> (String, String) {
    let seed = byte.repeat(32);
    let public = cdc_manifest::SigningKey::read(&seed).unwrap().public_key();
    (seed, public)
}

/// The service lists an earlier signed full export as the next one.
#[tokio::test]
async fn with_a_key_nothing_goes_back_to_an_older_export() {
    let (seed, public) = signing_key("07");
    let pair = Pair::started("create table t (id int primary key); insert into t values (1)", |start| {
        start.with("MANIFEST_KEY", &seed)
    })
    .await;
    let full = export(&pair.service, "full", "t", "a").await;
    pair.source.run("insert into t values (9)").await;
    export(&pair.service, "delta", "t", "a").await;
    let folder = reachable_folder();
    let (to, into) = (pair.target.url(), folder.path().to_str().unwrap());
    let key = ["--consumer", "a", "--dataset", "t", "--request", "none", "--public-key", &public];
    let call =
        async |server: &str, command: &[&str]| far(&[command, &key, &["--server", server]].concat()).output().await;
    let server = lying(&pair.service, move |path, value| {
        if path.contains("after=") {
            *value = json!({ "items": [full], "nextCursor": null });
        }
    })
    .await;
    for command in [["apply", "--to", &to], ["pull", "--into", into]] {
        silent(call(&pair.service.address, &command).await);
        let (printed, _) = ends(call(&server, &command).await, 1, "older: the export ");
        assert_eq!(printed, "", "{command:?}");
        silent(call(&pair.service.address, &command).await);
    }
    assert_eq!(pair.target.one::<i64>("select count(*) from t").await, 2);
}

#[tokio::test]
async fn with_a_key_a_pull_takes_signed_exports_alone() {
    let database = Database::with_users(5).await;
    let ((seed, public), (_, other)) = (signing_key("07"), signing_key("08"));
    let service = Start::on(&database).with("MANIFEST_KEY", &seed).service().await;
    service.export("full", "a").await;
    service.export("full", "b").await;
    let folder = reachable_folder();
    type Lie = fn(&mut Value);
    let lies: [(&str, Lie); 5] = [
        ("it has no signature", |it| drop(it.as_object_mut().unwrap().remove("signature"))),
        ("its signature is not by this key", |it| it["signature"] = json!("00".repeat(64))),
        ("its signature is not by this key", |it| it["number"] = json!(9)),
        ("its signature is not by this key", |it| it["entries"][0]["url"] = json!("https://evil.example/x.csv")),
        ("its signature has a form", |it| drop(it.as_object_mut().unwrap().remove("signatureVersion"))),
    ];
    let into = folder.path().join("inbox");
    for (why, lie) in lies {
        let server = lying(&service, move |path, value| {
            if path.contains("/manifest") {
                lie(value);
            }
        })
        .await;
        assert_eq!(ends(pull(&server, &into).and(&["--public-key", &public]).output().await, 1, why).0, "", "{why}");
        assert_eq!(names_below(&into), BTreeSet::new(), "{why}");
    }
    ends(
        pull(&service.address, &into).and(&["--public-key", &other]).output().await,
        1,
        "its signature is not by this key",
    );
    // Two keys, while one replaces the other. What was pulled can be verified with them.
    let keys = ["--public-key", &other, "--public-key", &public];
    ends(pull(&service.address, &into).and(&keys).output().await, 0, "");
    let inbox = into.to_str().unwrap();
    let (code, printed, said) = far(&["verify", "--public-key", &public, inbox]).output().await;
    assert!(code == 0 && printed.starts_with("whole: 1 lane, 1 export, 1 file"), "{printed}{said}");

    // The signed manifest of another lane, in place of this one's.
    let theirs = service.manifest(&service.get("/exports?consumer=b").await["items"][0]).await;
    let server = lying(&service, move |path, value| {
        if path.contains("/manifest") {
            *value = theirs.clone();
        }
    })
    .await;
    let other = folder.path().join("other");
    ends(pull(&server, &other).and(&["--public-key", &public]).output().await, 1, "is that of another export");
    assert_eq!(names_below(&other), BTreeSet::new());
}

fn apply(pair: &Pair, from: &[&str]) -> Start {
    pair.apply_to(&pair.target.url(), from)
}

#[tokio::test]
async fn with_a_key_signed_exports_alone_are_applied() {
    let (seed, public) = signing_key("07");
    let table = "create table t (id bigint primary key, name text); insert into t values (1, 'a'), (2, 'b')";
    let pair = Pair::started(table, |start| start.with("MANIFESTS", "on").with("MANIFEST_KEY", &seed)).await;
    export(&pair.service, "full", "t", "a").await;
    pair.source.run("update t set name = 'c' where id = 1").await;
    let second = export(&pair.service, "delta", "t", "a").await;
    let place = pair.service.output().to_str().unwrap().to_owned();
    let manifest = pair.service.path(&second).with_extension("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let mut forged: Value = serde_json::from_str(&text).unwrap();
    forged["signature"] = json!("00".repeat(64));
    fs::write(&manifest, forged.to_string()).unwrap();
    let key = ["--from", &place, "--public-key", &public];
    let (code, printed, said) = apply(&pair, &key).output().await;
    assert!(code == 1 && printed.starts_with("t: full 1  2 rows") && printed.lines().count() == 1, "{printed}{said}");
    assert!(said.contains("its signature is not by this key") && said.contains("unusable: 1 of the"), "{said}");
    let server = lying(&pair.service, |path, value| {
        if path.contains("/manifest") {
            value.as_object_mut().unwrap().remove("signature");
        }
    })
    .await;
    let unsigned = ["--server", &server, "--request", "none", "--public-key", &public];
    assert_eq!(ends(apply(&pair, &unsigned).output().await, 1, "it has no signature").0, "");
    fs::write(&manifest, text).unwrap();
    assert_eq!(silent(apply(&pair, &key).output().await), "t: delta 2  1 rows written, 0 deleted\n");
    pair.require_equal("signed").await;
}

/// A file that anybody put into a place stopped the lanes of all consumers.
#[tokio::test]
async fn a_manifest_that_is_none_stops_no_other() {
    let table = "create table t (id bigint primary key, name text); insert into t values (1, 'a')";
    let pair = Pair::started(table, |start| start.with("MANIFESTS", "on")).await;
    export(&pair.service, "full", "t", "a").await;
    let place = pair.service.output().to_owned();
    fs::write(place.join("x.manifest.json"), "{}").unwrap();
    fs::create_dir(place.join("y.manifest.json")).unwrap();
    let from = ["--from", place.to_str().unwrap()];
    let (code, printed, said) = apply(&pair, &from).output().await;
    assert!(code == 0 && printed.starts_with("t: full 1  1 rows written"), "{printed}{said}");
    let warning = |name: &str| format!("warning: {name}.manifest.json: ");
    assert!(said.contains(&warning("x")) && said.contains(&warning("y")), "{said}");
    fs::remove_file(place.join("x.manifest.json")).unwrap();
    fs::remove_dir(place.join("y.manifest.json")).unwrap();

    // The manifest of another lane is no business of this one.
    let manifest = pair.service.path(&export(&pair.service, "full", "t", "b").await).with_extension("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("\"rows\":\"1\"", "\"rows\":\"2\"")).unwrap();
    silent(apply(&pair, &from).output().await);
    pair.require_equal("all").await;
}

/// Puts things under a name that a command opens, and requires that the command refuses each of them at once.
async fn refuses_what_is_planted(path: &Path, run: impl AsyncFn() -> (i32, String, String)) {
    let victim = path.with_file_name("victim");
    let name = path.file_name().unwrap().to_str().unwrap();
    let refused = async |what: &str| {
        let run = tokio::time::timeout(HANG_TIMEOUT, run());
        assert_eq!(ends(run.await.unwrap_or_else(|_| panic!("{what}: it waits")), 1, name).0, "", "{what}");
        assert!(!victim.exists() || fs::read_to_string(&victim).unwrap() == "mine", "{what}");
        fs::remove_file(path).unwrap();
    };
    symlink(&victim, path).unwrap();
    refused("a link to nothing").await;
    assert!(!victim.exists(), "it was made by the link");
    fs::write(&victim, "mine").unwrap();
    symlink(&victim, path).unwrap();
    refused("a link").await;
    symlink("/dev/zero", path).unwrap();
    refused("a link to an endless file").await;
    fs::hard_link(&victim, path).unwrap();
    refused("a second name").await;
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    refused("a pipe").await;
    drop(UnixListener::bind(path).unwrap());
    refused("a socket").await;
    if nix::unistd::geteuid().is_root() {
        fs::write(path, "").unwrap();
        chown(path, Some(54_321), Some(54_321)).unwrap();
        refused("another user's file").await;
    }
    fs::remove_file(&victim).unwrap();
}

/// Another user with write access to the folder made root create the file that a link led to, and wait for ever.
#[tokio::test]
async fn nothing_planted_in_a_folder_is_followed_or_waited_for() {
    let (_database, service) = serving_users(5).await;
    service.export("full", "a").await;
    let folder = reachable_folder();
    let run = async || pull(&service.address, folder.path()).output().await;
    refuses_what_is_planted(&folder.path().join(".cdc-export-pull.lock"), run).await;
    refuses_what_is_planted(&folder.path().join(".cdc-export-pull.json"), run).await;
    // An endless state, of this user's own.
    let state = folder.path().join(".cdc-export-pull.json");
    fs::File::create(&state).unwrap().set_len(1 << 40).unwrap();
    ends(run().await, 1, "more than 65536 bytes");
    fs::remove_file(state).unwrap();
    let (code, printed, said) = run().await;
    assert_eq!((code, printed.lines().count()), (0, 1), "{said}");
}

/// Starts a service that answers each call in the same way. Returns its address.
async fn answering(answer: impl Fn(&str) -> Value + Clone + Send + Sync + 'static) -> String {
    let handler = async move |request: Request| axum::Json(answer(&request.uri().to_string()));
    serving(axum::Router::new().fallback(handler)).await
}

/// Pages without an end took 3 GB of memory in 20 seconds.
#[tokio::test]
async fn a_list_that_repeats_ends_the_pull() {
    let (_database, service) = serving_users(5).await;
    let (job, _) = service.export("delta", "a").await;
    let endless = move |path: &str, cursor: Value, items: u64| {
        if path.contains("exportType=full") {
            return json!({ "items": [], "nextCursor": null });
        }
        let numbered = |number: u64| {
            let mut job = job.clone();
            job["number"] = json!(number + 5);
            job["jobId"] = json!(uuid::Uuid::new_v4());
            job
        };
        json!({ "items": (0..items).rev().map(numbered).collect::<Vec<_>>(), "nextCursor": cursor })
    };
    let same = endless.clone();
    let cursors = [
        answering(move |path| same(path, json!("again"), 3)).await,
        answering({
            let endless = endless.clone();
            move |path| endless(path, json!(uuid::Uuid::new_v4()), 3)
        })
        .await,
        answering(move |path| endless(path, json!(uuid::Uuid::new_v4()), 0)).await,
    ];
    for server in cursors {
        let folder = reachable_folder();
        let run = tokio::time::timeout(HANG_TIMEOUT, pull(&server, folder.path()).output());
        assert_eq!(ends(run.await.expect("the pull ends"), 1, "the list of exports").0, "");
    }

    // An export that comes after itself.
    let first: Value = service.call("GET", "/exports?consumer=a", &[]).await.json().await.unwrap();
    let server = lying(&service, move |path, value| {
        if path.contains("after=") {
            *value = first.clone();
        }
    })
    .await;
    let folder = reachable_folder();
    let run = tokio::time::timeout(HANG_TIMEOUT, pull(&server, folder.path()).output());
    ends(run.await.expect("the pull ends"), 1, "after itself");
}

/// A pause so long that a sum overflowed was a panic.
#[tokio::test]
async fn a_service_chooses_no_endless_pause() {
    let handler = async || {
        // Only after a second the sum overflows.
        tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
        let problem = json!({ "code": "starting", "detail": "not yet" });
        let headers = [("retry-after", u64::MAX.to_string())];
        (axum::http::StatusCode::SERVICE_UNAVAILABLE, headers, axum::Json(problem)).into_response()
    };
    let address = serving(axum::Router::new().fallback(handler)).await;
    let folder = reachable_folder();
    let (code, _, said) = pull(&address, folder.path()).output().await;
    assert!(code == 1 && said.contains("not yet") && !said.contains("panicked"), "{code} {said}");
}

#[tokio::test]
async fn a_file_larger_than_the_disk_is_not_begun() {
    let (_database, service) = serving_users(5).await;
    let (job, _) = service.export("full", "a").await;
    let bytes = 1_u64 << 62;
    let manifest = service.manifest(&job).await;
    let Manifest { number, mut export, entries, .. } = Manifest::read(manifest.to_string().as_bytes()).unwrap();
    export.files[0].bytes = bytes.to_string();
    let large = serde_json::to_value(Manifest::new(number, export, vec![entries[0].url.clone()])).unwrap();
    let server = lying(&service, move |path, value| {
        if path.contains("/manifest") {
            value.clone_from(&large);
        } else if let Some(job) = value["items"].get_mut(0) {
            job["files"][0]["bytes"] = json!(bytes);
            job["digest"] = large["digest"].clone();
        }
    })
    .await;
    let folder = reachable_folder();
    assert_eq!(ends(pull(&server, folder.path()).output().await, 1, "are free on this disk").0, "");
    assert_eq!(names_below(folder.path()), BTreeSet::new());
}

/// With 1,024 descriptors, an export of 3,000 files could not be applied.
#[tokio::test]
async fn an_export_may_have_more_files_than_a_process_may_open() {
    const FILES: usize = 300;

    let table = "create table t (id bigint primary key, name text)";
    let pair = Pair::started(table, |start| start.with("MANIFESTS", "on")).await;
    let job = export(&pair.service, "full", "t", "a").await;
    let manifest = pair.service.manifest(&job).await;
    let content = fs::read(pair.service.path(&job)).unwrap();

    // The files have a header alone, so that none of them has a row of another.
    let name = job["outputFilename"].as_str().unwrap().to_owned();
    let names: Vec<String> =
        (1..=FILES).map(|part| format!("{}.part-{part:05}.csv", name.trim_end_matches(".csv"))).collect();
    let Manifest { number, mut export, .. } = Manifest::read(manifest.to_string().as_bytes()).unwrap();
    let file = export.files[0].clone();
    export.files =
        names.iter().map(|name| cdc_manifest::ManifestFile { path: Some(name.clone()), ..file.clone() }).collect();
    let urls = names.iter().map(|name| format!("file:///srv/{name}")).collect();
    let manifest = Manifest::new(number, export, urls);
    let folder = reachable_folder();
    names.iter().for_each(|name| fs::write(folder.path().join(name), &content).unwrap());
    let stem = name.trim_end_matches(".csv");
    fs::write(folder.path().join(format!("{stem}.manifest.json")), manifest.text()).unwrap();
    let (code, printed, said) =
        apply(&pair, &["--from", folder.path().to_str().unwrap()]).with_open_files(64).output().await;
    assert_eq!((code, printed.as_str()), (0, "t: full 1  0 rows written, 0 deleted\n"), "{said}");

    // A service with such an export.
    let manifest = serde_json::to_value(&manifest).unwrap();
    let server = lying(&pair.service, move |path, value| {
        if path.contains("/manifest") {
            value.clone_from(&manifest);
        } else if let Some(job) = value["items"].get_mut(0) {
            let file = job["files"][0].clone();
            let part = |(name, part): (&String, usize)| {
                let mut file = file.clone();
                (file["name"], file["part"]) = (json!(name), json!(part));
                file
            };
            job["files"] = names.iter().zip(1..).map(part).collect();
            job["digest"] = manifest["digest"].clone();
        }
    })
    .await;
    pair.target.run("drop table t; drop schema cdc_apply cascade").await;
    let from = ["--server", &server, "--request", "none"];
    let (code, printed, said) = apply(&pair, &from).with_open_files(64).output().await;
    assert_eq!((code, printed.as_str()), (0, "t: full 1  0 rows written, 0 deleted\n"), "{said}");
    let into = folder.path().join("inbox");
    let pulled = ["pull", "--consumer", "a", "--dataset", "t", "--server", &server, "--into", into.to_str().unwrap()];
    let (code, printed, said) = far(&pulled).with_open_files(64).output().await;
    assert_eq!((code, printed.lines().count()), (0, FILES), "{said}");
}

/// A file of other rows than its manifest says was unpacked to its end.
#[tokio::test]
async fn rows_beyond_the_manifest_are_not_loaded() {
    let table = "create table t (id bigint primary key, name text); insert into t values (1, 'a')";
    let pair = Pair::started(table, |start| start.with("MANIFESTS", "on")).await;
    let job = export(&pair.service, "full", "t", "a").await;
    let place = pair.service.output().to_owned();
    let manifest = pair.service.path(&job).with_extension("manifest.json");
    let text = fs::read(&manifest).unwrap();
    let change = |change: &dyn Fn(&mut cdc_manifest::Chained)| {
        let Manifest { number, mut export, entries, .. } = Manifest::read(&text).unwrap();
        change(&mut export);
        let urls = vec![entries[0].url.clone(); export.files.len()];
        fs::write(&manifest, Manifest::new(number, export, urls).text()).unwrap();
    };
    let content = [&b"id,name\n"[..], &b"1,a\n".repeat(1 << 20)].concat();
    fs::write(pair.service.path(&job), &content).unwrap();
    let sha256 = hex::encode(ring::digest::digest(&ring::digest::SHA256, &content));
    let from = ["--from", place.to_str().unwrap()];
    let refused = async |why: &str| {
        assert_eq!(ends(apply(&pair, &from).output().await, 1, why).0, "", "{why}");
    };
    change(&|export| (export.files[0].sha256, export.files[0].bytes) = (sha256.clone(), content.len().to_string()));
    refused("it has more than 1 rows").await;
    change(&|export| export.files[0].sha256.clone_from(&sha256));
    refused("it has more bytes").await;
    change(&|export| export.files.push(export.files[0].clone()));
    refused("more than once").await;
}
