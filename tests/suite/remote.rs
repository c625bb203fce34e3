//! The command line without a database: a service elsewhere, over its API.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use cdc_capture::Continuity;
use cdc_client::JobView;
use cdc_export::job::Status;
use cdc_manifest::Chained;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{
    Csv, Database, HANG_TIMEOUT, Service, Start, UNKNOWN_JOB, answering, ends, eventually, far, passed_on,
    reachable_folder, serving, serving_users, silent,
};
use crate::verify::next;

async fn run(arguments: &[&str]) -> (i32, String, String) {
    far(arguments).output().await
}

/// A port that passes connections on to an address, and breaks each once so many bytes have come back, until that was
/// done `breaks` times. With what came back in all.
async fn frail(behind: &str, after: u64, breaks: u64) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let behind = behind.trim_start_matches("http://").to_owned();
    let passed = Arc::<AtomicU64>::default();
    let (count, left) = (Arc::clone(&passed), Arc::new(AtomicU64::new(breaks)));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(&behind).await.unwrap();
            let (count, left) = (Arc::clone(&count), Arc::clone(&left));
            tokio::spawn(async move {
                let (mut asks, mut asked) = client.split();
                let (mut answers, mut answered) = server.split();
                let there = tokio::io::copy(&mut asks, &mut answered);
                let back = async {
                    let (mut bytes, mut here) = (vec![0; 16 << 10], 0);
                    while let Ok(length @ 1..) = answers.read(&mut bytes).await {
                        here += length as u64;
                        if asked.write_all(&bytes[..length]).await.is_err() {
                            return;
                        }
                        count.fetch_add(length as u64, Ordering::Relaxed);
                        let one_less = |left: u64| left.checked_sub(1);
                        if here >= after && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
                            return;
                        }
                    }
                };
                tokio::select! { _ = there => {}, () = back => {} }
            });
        }
    });
    (address, passed)
}

/// The path that a command printed, before the rows.
fn path_in(printed: &str) -> &Path {
    Path::new(printed.trim().split_once("  ").expect("a path and rows").0)
}

#[tokio::test]
async fn a_remote_export_needs_no_database() {
    let (database, service) = serving_users(19).await;
    let folder = reachable_folder();
    let here = folder.path().to_str().unwrap();
    let server = ["--server", &service.address];
    let export = async |more: &[&str]| run(&[&["export"], more, &server].concat()).await;

    let printed = silent(export(&["full", "--consumer", "a", "--output", here]).await);
    assert!(printed.trim().ends_with("  18 rows") && path_in(&printed).starts_with(here), "{printed}");
    assert_eq!(Csv::read(path_in(&printed)).rows.len(), 18);
    assert_eq!(std::fs::read_dir(here).unwrap().count(), 1, "nothing is left beside it");

    database.run("update users set name = 'x' where id = 3").await;
    let (code, printed, said) = export(&["delta", "--consumer", "a"]).await;
    assert!(code == 0 && printed.starts_with("delta_a_") && printed.ends_with("  1 rows\n"), "{printed}");
    // The error names the next command, which works as it stands.
    let next = said.trim().trim_start_matches("`cdc-export ").split('`').next().unwrap();
    let (code, printed, _) = run(&[&next.split(' ').collect::<Vec<_>>()[..], &["--output", here]].concat()).await;
    assert_eq!((code, Csv::read(path_in(&printed)).ids()), (0, vec![3]));

    let (code, printed, _) = export(&["incremental", "--consumer", "b", "--dataset", "users", "--json"]).await;
    let job: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((code, &job["status"], &job["consumerId"]), (0, &"completed".into(), &"b".into()));
    assert_eq!(service.job(job["jobId"].as_str().unwrap()).await, job);

    let (code, printed, _) = export(&["full", "--consumer", "c", "--format", "ndjson", "--output", "-"]).await;
    assert_eq!((code, printed.lines().count()), (0, 18), "{printed}");
    assert!(printed.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));

    let (code, far, _) = run(&["status", "--json", "--server", &service.address]).await;
    let (_, near, _) = Start::on(&database).arguments(&["status", "--json"]).output().await;
    let without_times = |status: &str| {
        let mut status: Value = serde_json::from_str(status).unwrap();
        for consumer in status["consumers"].as_array_mut().unwrap() {
            consumer["asOf"].take();
        }
        status
    };
    assert_eq!((code, without_times(&far)), (0, without_times(&near)));
    let (_, table, _) = run(&["status", "--server", &service.address]).await;
    assert!(table.lines().any(|line| line.starts_with("a ") && line.ends_with("delta completed")), "{table}");

    let (code, _, said) = export(&["full", "--consumer", "a", "--dataset", "nothing"]).await;
    assert!(code == 1 && said.contains("there is no dataset `nothing`; there are: users"), "{said}");
}

#[tokio::test]
async fn a_full_export_needs_no_consumer() {
    let (database, service) = serving_users(9).await;
    let folder = reachable_folder();
    let here = folder.path().to_str().unwrap();
    let (url, output) = (database.url(), service.output().display().to_string());
    let near = async |arguments: &[&str]| {
        Start::plain().with("DATABASE_URL", &url).with("OUTPUT_DIR", &output).arguments(arguments).output().await
    };
    let printed = silent(run(&["export", "full", "--output", here, "--server", &service.address]).await);
    assert_eq!(Csv::read(path_in(&printed)).rows.len(), 9);
    let (code, printed, said) = near(&["export", "full", "--json"]).await;
    let job: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((code, &job["consumerId"], &job["rowsExported"]), (0, &Value::Null, &9.into()), "{said}");
    assert_eq!(service.get("/consumers").await["items"], json!([]), "no consumer has a position");

    for bad in [
        &["export", "delta"][..],
        &["export", "incremental"],
        &["export", "full", "--after", "none"],
        &["export", "full", "--skip-empty"],
    ] {
        ends(near(bad).await, 2, "--consumer");
    }
}

#[tokio::test]
async fn an_answer_tells_that_its_consumer_is_new() {
    let (_database, service) = serving_users(3).await;
    let post = async |consumer: &str, body: &'static str| -> bool {
        let call = service.client.post(format!("{}/exports/full", service.address)).header("X-Consumer-ID", consumer);
        let answer = call.header("content-type", "application/json").body(body).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        answer.json::<Value>().await.unwrap()["newConsumer"] == true
    };
    assert!(post("search", "").await);
    assert!(!post("search", "").await);
    assert!(post("warehouse", r#"{"datasets": ["users"]}"#).await);
    assert!(!post("warehouse", r#"{"datasets": ["users"]}"#).await);
    let once = [("X-Consumer-ID", "again"), ("Idempotency-Key", "k")];
    let mut answers = Vec::new();
    for _ in 0..2 {
        let answer: Value = service.call("POST", "/exports/full", &once).await.json().await.unwrap();
        service.ended(answer["jobId"].as_str().unwrap()).await;
        answers.push(answer);
    }
    assert_eq!((&answers[0], &answers[0]["newConsumer"]), (&answers[1], &json!(true)));
    let ad_hoc: Value = service.call("POST", "/exports", &[]).await.json().await.unwrap();
    assert!(ad_hoc.get("newConsumer").is_none(), "{ad_hoc}");
}

#[tokio::test]
async fn a_place_that_takes_no_file_is_known_before_there_is_one() {
    let (database, service) = serving_users(5).await;
    let folder = reachable_folder();
    let taken = folder.path().join("taken.csv");
    std::fs::write(&taken, "mine").unwrap();
    let nowhere = folder.path().join("nowhere/x.csv");
    for output in [taken.to_str().unwrap(), nowhere.to_str().unwrap(), ""] {
        let export = ["export", "full", "--consumer", "a", "--output", output];
        ends(far(&export).and(&["--server", &service.address]).output().await, 2, "--output: ");
        ends(Start::on(&database).arguments(&export).output().await, 2, "--output: ");
    }
    for (format, compression) in [("parquet", "gzip"), ("csv", "lz4"), ("ndjson", "snappy")] {
        let export = ["export", "full", "--consumer", "a", "--format", format, "--compression", compression];
        let (code, _, said) = run(&export).await;
        let why = if cfg!(feature = "parquet") || format != "parquet" {
            format!("{format} has no {compression}: its compressions are ")
        } else {
            "this build has no parquet".to_owned()
        };
        assert!(code == 2 && said.contains(&why), "{said}");
    }
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 0, "nothing was asked for");
    assert_eq!(std::fs::read(&taken).unwrap(), b"mine");
}

#[tokio::test]
async fn whoever_asked_for_an_export_learns_its_name() {
    let (_database, service) = serving_users(20_000).await;
    let folder = reachable_folder();
    let (output, named) = (folder.path().join("x.csv"), "`cdc-export download ");
    // The file arrives slowly, and the user interrupts the command.
    let (server, passed) = frail(&service.address, 0, u64::MAX).await;
    let export = ["export", "full", "--consumer", "a", "--output", output.to_str().unwrap(), "--server", &server];
    let (child, _work) = far(&export).spawn();
    eventually("it has completed", || async {
        let job = service.call("GET", "/exports?limit=1", &[]).await.json::<Value>().await.unwrap();
        (job["items"][0]["status"] == "completed" && passed.load(Ordering::Relaxed) > 2_000).then_some(())
    })
    .await;
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGINT).unwrap();
    let done = tokio::time::timeout(HANG_TIMEOUT, child.wait_with_output()).await.expect("it ends").unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(1), "{said}");
    let id = said.split(named).nth(1).unwrap_or_else(|| panic!("{said}")).split(' ').next().unwrap();
    // The second command doesn't request the arrived bytes again.
    ends(run(&["download", id, "--output", export[5], "--server", &service.address]).await, 0, "");
    assert_eq!(std::fs::read(&output).unwrap(), std::fs::read(service.path(&service.job(id).await)).unwrap());
}

#[tokio::test]
async fn a_key_for_elsewhere_is_no_setting_of_a_service() {
    let database = Database::new().await;
    ends(Start::on(&database).with("CDC_EXPORT_KEY", "somebody's").arguments(&["status"]).output().await, 0, "");
    let settings = |command: Start| command.with("DATABASE_URL", "mysql://other/project").with("WORKERS", "many");
    ends(settings(far(&["completions", "bash"])).output().await, 0, "");
    let service = Start::on(&database).service().await;
    ends(settings(far(&["status", "--server", &service.address])).output().await, 0, "");
}

#[tokio::test]
async fn a_failed_export_says_what_helps() {
    let (database, service) = serving_users(5).await;
    service.export("full", "a").await;
    database.run("truncate users").await;
    let (code, printed, said) = run(&["export", "delta", "--consumer", "a", "--server", &service.address]).await;
    assert_eq!((code, printed.as_str()), (1, ""));
    assert!(said.contains("full_export_needed"), "{said}");
    assert!(said.contains("a full export is needed: `cdc-export export full --consumer a --dataset users`"), "{said}");
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_from_there() {
    let (database, service) = serving_users(20_000).await;
    let id = service.submit("full", "a").await;
    let job = service.ended(&id).await;
    let size = job["bytesWritten"].as_u64().unwrap();
    let folder = reachable_folder();
    let path = folder.path().join("users.csv");
    let output = path.to_str().unwrap();

    let (server, passed) = frail(&service.address, size / 4, 3).await;
    let (printed, said) = ends(run(&["download", &id, "--output", output, "--server", &server]).await, 0, "");
    assert_eq!(said.matches("going on from there").count(), 3, "{said}");
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(service.path(&job)).unwrap());
    assert_eq!(printed, format!("{output}  {} rows\n", job["rowsExported"]));
    let passed = passed.load(Ordering::Relaxed);
    assert!(
        (size..size + size / 2).contains(&passed),
        "{passed} of {size} bytes came: not from the beginning each time"
    );

    // An existing file is never replaced.
    ends(run(&["download", &id, "--output", output, "--server", &server]).await, 2, "is there already");
    // A path that can't have a file is refused before the export, not after it.
    let (dangling, below) = (folder.path().join("dangling.csv"), folder.path().join("users.csv/"));
    std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    let jobs = database.one::<i64>("select count(*) from exports").await;
    for output in [&dangling, &folder.path().join("dangling.csv/"), &below] {
        let arguments =
            ["export", "full", "--consumer", "late", "--output", output.to_str().unwrap(), "--server", &server];
        let (code, _, said) = run(&arguments).await;
        assert!(
            code == 2 && (said.contains("is there already") || said.contains("is no folder")),
            "{output:?}: {said}"
        );
    }
    assert_eq!(database.one::<i64>("select count(*) from exports").await, jobs);

    // A part that another process has left is gone on from; what it was is found out at the end.
    let part = folder.path().join(format!(".again.csv.{id}.part"));
    let again = folder.path().join("again.csv");
    let arguments = ["download", &id, "--output", again.to_str().unwrap(), "--server", &service.address];
    let whole = std::fs::read(&path).unwrap();
    let mut half = whole[..whole.len() / 2].to_vec();
    half[100] ^= 1;
    std::fs::write(&part, &half).unwrap();
    ends(run(&arguments).await, 1, "not the file that was exported");
    assert!(!part.exists() && !again.exists());
    half[100] ^= 1;
    std::fs::write(&part, &half).unwrap();
    assert_eq!(run(&arguments).await.0, 0);
    assert_eq!(std::fs::read(&again).unwrap(), whole);

    // On the service's own machine the same command needs no server.
    let near = folder.path().join("near.csv");
    let near = near.to_str().unwrap();
    let local = Start::on(&database).sharing_output(&service).arguments(&["download", &id, "--output", near]);
    let (code, _, said) = local.output().await;
    assert!(code == 0 && said.lines().count() == 1 && said.contains("\"event\":\"audit\""), "{said}");
    assert_eq!(std::fs::read(near).unwrap(), whole);
}

/// A proxy in front of a service that takes `Range` out of each request.
async fn without_ranges(service: &Service) -> String {
    let (client, behind) = (service.client.clone(), service.address.clone());
    let handler = async move |mut request: Request| {
        request.headers_mut().remove("range");
        Response::from(passed_on(&client, &behind, request).await).map(Body::new)
    };
    serving(axum::Router::new().fallback(handler)).await
}

#[tokio::test]
async fn a_proxy_may_ignore_ranges() {
    let (_database, service) = serving_users(20_000).await;
    let job = service.export("full", "a").await.0;
    let (id, whole) = (job["jobId"].as_str().unwrap(), std::fs::read(service.path(&job)).unwrap());
    let server = without_ranges(&service).await;
    let folder = reachable_folder();
    let path = folder.path().join("users.csv");
    let output = path.to_str().unwrap();
    let part = folder.path().join(format!(".users.csv.{id}.part"));
    // A download that goes on gets the whole file again, and so does one of a part with a wrong byte.
    let mut wrong = whole[..whole.len() / 2].to_vec();
    wrong[100] ^= 1;
    for (there, codes) in [(&whole[..0], [0, 2]), (&whole[..whole.len() / 2], [0, 2]), (&wrong[..], [1, 0])] {
        std::fs::write(&part, there).unwrap();
        for code in codes {
            ends(run(&["download", id, "--output", output, "--server", &server]).await, code, "");
        }
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        std::fs::remove_file(&path).unwrap();
    }
    let into = folder.path().join("inbox");
    silent(run(&["pull", "--consumer", "a", "--into", into.to_str().unwrap(), "--server", &server]).await);
    assert_eq!(std::fs::read(into.join(job["outputFilename"].as_str().unwrap())).unwrap(), whole);

    // A connection that breaks once, behind a proxy that ignores ranges.
    let (frail_service, _) = frail(&server, whole.len() as u64 / 2, 1).await;
    let (printed, said) = ends(run(&["download", id, "--output", "-", "--server", &frail_service]).await, 0, "");
    assert!(said.contains("going on from there") && printed.into_bytes() == whole, "{said}");
}

#[tokio::test]
async fn what_has_no_file_says_why() {
    let (database, service) = serving_users(5).await;
    let (held, id) = service.held_export(&database, "full", "a").await;
    let download = async |id: &str| run(&["download", id, "--server", &service.address]).await;
    ends(download(&id).await, 1, "the export is processing");
    service.call("POST", &format!("/exports/{id}/cancel"), &[]).await;
    service.ended(&id).await;
    ends(download(&id).await, 1, "the export is cancelled, so it has no file");
    held.rollback().await.unwrap();
    let id = service.submit("full", "a").await;
    service.ended(&id).await;
    service.call("DELETE", &format!("/exports/{id}"), &[]).await;
    ends(download(&id).await, 1, "the file of this export was removed or replaced");
    ends(download(UNKNOWN_JOB).await, 1, "there is no export with this id");
    assert_eq!(download("nothing").await.0, 2);
}

#[tokio::test]
async fn a_key_is_shown_where_one_is_wanted() {
    let database = Database::with_users(5).await;
    let keys = async |arguments: &[&str]| Start::on(&database).arguments(arguments).output().await;
    let (_, key, _) = keys(&["keys", "create", "--name", "far", "--consumer", "a", "--dataset", "users"]).await;
    let service = Start::on(&database).with("AUTH", "keys").service().await;
    let export = |consumer| ["export", "full", "--consumer", consumer, "--server", &service.address];
    let (code, _, said) = run(&export("a")).await;
    assert!(code == 1 && said.contains("CDC_EXPORT_KEY") && said.contains("keys create"), "{said}");
    let with_key = async |consumer| far(&export(consumer)).with("CDC_EXPORT_KEY", key.trim()).output().await;
    assert_eq!(with_key("a").await.0, 0);
    let (code, _, said) = with_key("b").await;
    assert!(code == 1 && said.contains('b') && !said.contains(key.trim()), "{said}");
    let (code, _, said) = far(&export("a")).with("CDC_EXPORT_KEY", "cdcx_secret").output().await;
    assert!(code == 2 && said.starts_with("cdc-export: CDC_EXPORT_KEY: ") && !said.contains("secret"), "{said}");
    keys(&["keys", "revoke", "far"]).await;
    eventually("it is refused", || async {
        let (code, _, said) = with_key("a").await;
        (code == 1 && said.contains("keys list")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_service_that_is_not_there_is_said_at_once() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, _, said) = run(&["status", "--server", &format!("http://{nobody}")]).await;
    assert!(code == 1 && said.contains("can't be reached: connection refused; is a service running there?"), "{said}");
    for bad in ["127.0.0.1:8080", "ftp://127.0.0.1", "http://me:secret@127.0.0.1", "http://h/?token=secret", ""] {
        let (code, _, said) = run(&["status", "--server", bad]).await;
        assert!(code == 2 && said.contains("--server") && said.contains("such as http://127.0.0.1:8080"), "{said}");
        assert!(!said.contains("secret"), "{said}");
    }

    // Something else that speaks HTTP.
    let other = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello".to_vec()).await;
    ends(run(&["status", "--server", &other]).await, 1, "is the address right?");
}

#[tokio::test]
async fn what_a_service_says_steers_no_terminal() {
    let body = r#"{"code":"nothing","detail":"\u001b]0;x\u0007red \u001b[31malarm"}"#;
    let head = format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let server = answering([head.into_bytes(), body.as_bytes().to_vec()].concat()).await;
    let (code, _, said) = run(&["status", "--server", &server]).await;
    assert!(code == 1 && said.contains("alarm") && !said.contains(['\u{1b}', '\u{7}']), "{said:?}");
}

/// The detail names the header under which the service's log has the cause.
#[tokio::test]
async fn a_failure_of_the_service_is_printed_with_its_request_id() {
    let body = r#"{"code":"internal","detail":"its log has the cause under this answer's X-Request-Id"}"#;
    let head = format!(
        "HTTP/1.1 500 Internal Server Error\r\nx-request-id: r-4711\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let server = answering([head.into_bytes(), body.as_bytes().to_vec()].concat()).await;
    ends(run(&["status", "--server", &server]).await, 1, "under this answer's X-Request-Id: r-4711\n");
}

#[tokio::test]
async fn a_file_is_written_nowhere_else() {
    let id = "01900000-0000-7000-8000-000000000000";
    for name in ["../outside.csv", "/tmp/outside.csv", "..", "", "a/b.csv", ".bashrc"] {
        let job = serde_json::json!({
            "jobId": id, "consumerId": "a", "dataset": "users", "exportType": "full", "status": "completed", "progress": 100,
            "rowsExported": 1, "bytesWritten": 5, "outputFilename": name, "sha256": "0".repeat(64), "attempt": 1, "error": null,
            "files": [{ "part": 1, "name": name, "location": null, "bytes": 5, "rows": 1, "sha256": "0".repeat(64) }],
        })
        .to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", job.len());
        let server = answering([head.into_bytes(), job.into_bytes()].concat()).await;
        ends(run(&["download", id, "--server", &server]).await, 1, "is no name of a file");
    }
}

#[tokio::test]
async fn a_watched_status_outlives_the_service() {
    let (database, service) = serving_users(5).await;
    let (mut child, _work) = far(&["status", "--watch", "--json", "--server", &service.address]).spawn_piped();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || -> Value {
        let line =
            tokio::time::timeout(HANG_TIMEOUT, lines.next_line()).await.expect("a line").unwrap().expect("it goes on");
        serde_json::from_str(&line).unwrap()
    };
    assert_eq!(next().await["consumers"], serde_json::json!([]));
    service.export("full", "a").await;
    while next().await["consumers"][0]["consumerId"] != "a" {}

    // The service comes back at the same address.
    let port = service.address.rsplit(':').next().unwrap().to_owned();
    service.stop().await;
    let service = Start::on(&database).with("PORT", &port).service().await;
    service.export("full", "b").await;
    while next().await["consumers"][1]["consumerId"] != "b" {}
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(tokio::time::timeout(HANG_TIMEOUT, child.wait()).await.expect("it ends").unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_shell_completes_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = run(&["completions", shell]).await;
        assert!(code == 0 && ["export", "download", "server"].iter().all(|word| script.contains(word)), "{shell}");
    }
    // A reader that has seen enough is no failure.
    let (mut child, _work) = far(&["completions", "bash"]).spawn_piped();
    drop(child.stdout.take());
    let output = tokio::time::timeout(HANG_TIMEOUT, child.wait_with_output()).await.expect("it ends").unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
}

#[tokio::test]
async fn a_key_that_everybody_on_the_way_can_read_is_warned_of() {
    let database = Database::new().await;
    let service = Start::on(&database).with("AUTH", "keys").service().await;
    let (_, key, _) = Start::on(&database).arguments(&["keys", "create", "--name", "far"]).output().await;
    let port = service.address.rsplit_once(':').unwrap().1;
    let status = async |server: &str, key: &str| {
        let start = far(&["status", "--server", server]).with("CDC_EXPORT_KEY", key).with("NO_PROXY", "*");
        start.output().await
    };
    // An address that isn't this machine's by its name, and leads here.
    let (code, printed, said) = status(&format!("http://0.0.0.0:{port}"), key.trim()).await;
    assert!(code == 0 && printed.starts_with("CONSUMER"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("cdc-export: warning: ") && said.contains("https://"), "{said}");
    assert!(said.contains("0.0.0.0") && !said.contains(key.trim()), "{said}");
    // On this machine, or without a key, there is no key that others could read.
    for here in ["127.0.0.1", "localhost", "LOCALHOST"] {
        silent(status(&format!("http://{here}:{port}"), key.trim()).await);
    }
    let (code, _, said) = status(&format!("http://0.0.0.0:{port}"), "").await;
    assert!(code == 1 && said.lines().count() == 1 && !said.contains("warning"), "{said}");
    // Nor is there one on an encrypted connection, although nobody speaks TLS here.
    let (code, _, said) = status(&format!("https://0.0.0.0:{port}"), key.trim()).await;
    assert!(code == 1 && !said.contains("warning"), "{said}");
}

/// A service that sends each download on to this address, and does everything else itself.
async fn sending_on(service: &Service, to: String) -> String {
    let (client, behind) = (service.client.clone(), service.address.clone());
    let handler = async move |request: Request| -> Response {
        let path = request.uri().path().to_owned();
        if path.ends_with("/download") {
            let headers = [("location", format!("{to}{path}?signature=geheim"))];
            return (axum::http::StatusCode::TEMPORARY_REDIRECT, headers).into_response();
        }
        Response::from(passed_on(&client, &behind, request).await).map(Body::new)
    };
    serving(axum::Router::new().fallback(handler)).await
}

/// A store that keeps this content at every address, and ignores ranges with the status 200. Returns its address and
/// the headers of each request.
async fn keeping(content: Vec<u8>, status: u16) -> (String, Arc<Mutex<Vec<HeaderMap>>>) {
    let asked = Arc::<Mutex<Vec<HeaderMap>>>::default();
    let heard = Arc::clone(&asked);
    let handler = async move |headers: HeaderMap| {
        let range = headers.get("range").filter(|_| status != 200).map(|range| range.to_str().unwrap().to_owned());
        heard.lock().unwrap().push(headers);
        let from = |range: String| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
        let from: usize = range.map_or(0, from);
        (axum::http::StatusCode::from_u16(status).unwrap(), content[from..].to_vec())
    };
    let address = serving(axum::Router::new().fallback(handler)).await;
    (address, asked)
}

#[tokio::test]
async fn a_download_is_fetched_from_the_bucket_without_the_key() {
    let database = Database::with_users(200).await;
    let service = Start::on(&database).with("AUTH", "keys").service().await;
    let (_, key, _) = Start::on(&database).arguments(&["keys", "create", "--name", "far"]).output().await;
    let authorization = format!("Bearer {}", key.trim());
    let asks = [("Authorization", authorization.as_str()), ("X-Consumer-ID", "a")];
    let submitted: Value = service.post("/exports", &asks, &json!({"exportType": "full"})).await.json().await.unwrap();
    let id = submitted["jobId"].as_str().unwrap();
    let job = eventually("the export ends", async || {
        let job: Value = service.call("GET", &format!("/exports/{id}"), &asks).await.json().await.unwrap();
        (job["status"] == "completed").then_some(job)
    })
    .await;
    let whole = std::fs::read(service.path(&job)).unwrap();
    let folder = reachable_folder();
    let path = folder.path().join("users.csv");
    let download = async |store: &str| {
        let server = sending_on(&service, store.to_owned()).await;
        let arguments = ["download", id, "--output", path.to_str().unwrap(), "--server", &server];
        let (code, _, said) = far(&arguments).with("CDC_EXPORT_KEY", key.trim()).output().await;
        assert!(!said.contains("geheim"), "{said}");
        (code, said)
    };

    let mut other = whole.clone();
    other[100] ^= 1;
    for (content, status, why) in [
        (other, 206, "not the file that was exported"),
        ([whole.clone(), b"x".to_vec()].concat(), 206, "more bytes"),
        (whole.clone(), 403, "403"),
        (whole.clone(), 307, "307"),
    ] {
        let (store, asked) = keeping(content, status).await;
        let (code, said) = download(&store).await;
        assert!(code == 1 && said.contains(why) && !path.exists(), "{status}: {code} {said}");
        let asked = asked.lock().unwrap();
        assert!(asked.len() == 1 && !asked[0].contains_key("range"), "{status}: {asked:?}");
        // The client keeps the bytes that came before the mistake.
        let _ = std::fs::remove_file(folder.path().join(format!(".users.csv.{id}.part")));
    }
    for elsewhere in ["ftp://127.0.0.1", "http://name:password@127.0.0.1", "/there"] {
        let (code, said) = download(elsewhere).await;
        assert!(code == 1 && said.contains("https://"), "{elsewhere}: {said}");
    }

    // A store may ignore ranges.
    for there in [0, 100] {
        let (store, _) = keeping(whole.clone(), 200).await;
        std::fs::write(folder.path().join(format!(".users.csv.{id}.part")), &whole[..there]).unwrap();
        assert_eq!(download(&store).await, (0, String::new()), "{there}");
        assert_eq!(std::fs::read(&path).unwrap(), whole, "{there}");
        std::fs::remove_file(&path).unwrap();
    }

    // The download goes on from the existing part.
    let (store, asked) = keeping(whole.clone(), 206).await;
    std::fs::write(folder.path().join(format!(".users.csv.{id}.part")), &whole[..100]).unwrap();
    assert_eq!(download(&store).await, (0, String::new()));
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    let asked = asked.lock().unwrap().clone();
    assert!(asked.len() == 1 && asked[0]["range"] == "bytes=100-", "{asked:?}");
    for name in ["authorization", "cookie", "referer", "x-consumer-id", "if-range"] {
        assert!(!asked[0].contains_key(name), "{asked:?}");
    }
}

/// The client is a crate that doesn't know the service, so it has these words once more.
#[test]
fn the_clients_words_are_those_of_the_service() {
    for status in Status::ALL {
        let members = json!({ "jobId": uuid::Uuid::nil(), "status": status.as_str(), "progress": 0, "attempt": 0 });
        let job: JobView = serde_json::from_value(members).unwrap();
        assert_eq!(job.has_ended(), status.is_terminal(), "{status}");
    }
    let export = next("search", None, true, &[1], "").manifest.export;
    for word in Continuity::ALL {
        let export = Chained { continuity: Some(word.as_str().to_owned()), ..export.clone() };
        assert_eq!(export.is_by_time(), word.is_by_time(), "{word}");
    }
}
