//! Exports in several files (`maxFileBytes`): each is whole by itself, together they are the export, and a crash leaves
//! all or nothing.

pub(crate) mod files;

use serde_json::{Value, json};

use crate::harness::{Database, Start, ends, eventually, refusal, serving_users, until};
use crate::parts::files::{MOST, VALUE, files, ids, names, paths, submit};

/// So many users of a MiB each.
async fn with_users(users: i64) -> Database {
    let database = Database::new().await;
    // The value isn't compressed in the table: compression would gain nothing here.
    database.run("alter table users alter column name type text, alter column name set storage external").await;
    database.add_users(1, users).await;
    database.run(&format!("update users set is_deleted = false, name = repeat('x', {VALUE})")).await;
    database
}

#[tokio::test]
async fn an_export_that_fits_is_one_file_with_the_name_of_one() {
    let (_, service) = serving_users(5).await;
    let job = service.ended(&submit(&service, "full", json!({ "maxFileBytes": MOST })).await).await;
    assert_eq!(names(&job), [job["outputFilename"].as_str().unwrap()]);
    assert_eq!((&files(&job)[0]["sha256"], &files(&job)[0]["location"]), (&job["sha256"], &job["location"]));
    let path = format!("/exports/{}", job["jobId"].as_str().unwrap());
    for of in ["/download", "/files/1/download"] {
        let answer = service.call("GET", &format!("{path}{of}"), &[]).await;
        assert_eq!(answer.text().await.unwrap(), std::fs::read_to_string(service.path(&job)).unwrap());
    }
    let empty = service.ended(&submit(&service, "delta", json!({ "maxFileBytes": MOST })).await).await;
    assert_eq!((&empty["rowsExported"], files(&empty).len()), (&json!(0), 1));
    let job = service.ended(&submit(&service, "full", json!({ "maxFileBytes": MOST as f64 })).await).await;
    assert_eq!(job["maxFileBytes"], MOST);
    for bytes in [
        json!(MOST as f64 + 0.5),
        json!(1e300),
        json!(-1),
        json!(MOST - 1),
        json!((5_u64 << 30) + 1),
        json!("16MiB"),
        json!(null),
    ] {
        let refused = service.post("/exports/full", &[("X-Consumer-ID", "a")], &json!({ "maxFileBytes": bytes })).await;
        assert_eq!(refusal(refused).await, (400, "member_invalid".to_owned()), "{bytes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_leaves_all_files_or_none() {
    for (fault, attempts) in [
        ("sink.create=kill@2", 2),
        ("sink.fsync=kill@2", 2),
        ("worker.staged=kill", 2),
        ("worker.commit=kill", 2),
        ("sink.publish=kill@2", 1),
        ("sink.publish.renamed=kill@2", 1),
        ("publisher.named=kill", 1),
        ("sink.manifest=kill", 1),
        ("sink.manifest.renamed=kill", 1),
    ] {
        dies_at(fault, attempts).await;
    }
}

/// A crash at a place, and how many attempts the job takes with it.
async fn dies_at(fault: &str, attempts: u64) {
    let database = with_users(20).await;
    let start = || Start::on(&database).with("MANIFESTS", "on");
    let mut dead = start().with("FAILPOINTS", fault).with("LEASE_SECONDS", 2).service().await;
    dead.dies_of("full", "a", &json!({ "maxFileBytes": MOST })).await;
    let id: String = database.one("select job::text from exports").await;
    let heir = start().with("LEASE_SECONDS", 600).sharing_output(&dead).service().await;
    let job = heir.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(attempts)), "{fault}: {job}");
    assert_eq!(files(&job).len(), 2, "{fault}");
    assert_eq!(ids(&heir, &job), (1..=20).collect::<Vec<_>>(), "{fault}");
    let stem = job["outputFilename"].as_str().unwrap().strip_suffix(".csv").unwrap();
    let mut expected: Vec<_> = names(&job).into_iter().map(str::to_owned).collect();
    expected.insert(0, format!("{stem}.manifest.json"));
    let alone = || async { (heir.files() == expected).then_some(()) };
    eventually(&format!("{fault}: nothing else is in the folder"), alone).await;
    let manifest: Value = serde_json::from_slice(&std::fs::read(heir.output().join(&expected[0])).unwrap()).unwrap();
    assert_eq!((&manifest["digest"], &manifest["number"]), (&job["digest"], &job["number"]), "{fault}");
    let folder = heir.output().to_str().unwrap();
    let (code, said, errors) = Start::plain().arguments(&["verify", folder]).output().await;
    assert!(code == 0 && said.starts_with("whole: 1 lane, 1 export, 2 files"), "{fault}: {said}{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_fails_leaves_none_of_its_files() {
    let database = with_users(40).await;
    let service = Start::on(&database).with("FAILPOINTS", "sink.create=error@3").service().await;
    let id = submit(&service, "full", json!({ "maxFileBytes": MOST })).await;
    service.says("export_retried", &id).await;
    until("the attempt's files go", async || service.files().is_empty()).await;
    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(2)), "{job}");
    assert_eq!(service.files(), names(&job));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_which_a_file_is_lost_is_lost_as_a_whole() {
    let database = with_users(20).await;
    let mut dead = Start::on(&database).with("FAILPOINTS", "sink.publish=kill@2").service().await;
    dead.dies_of("full", "a", &json!({ "maxFileBytes": MOST })).await;
    let id: String = database.one("select job::text from exports").await;
    let left = dead.files();
    assert!(left.len() == 2 && left[0].starts_with('.') && left[1].contains(".part-00001"), "{left:?}");
    std::fs::remove_file(dead.output().join(&left[0])).unwrap();
    let heir = Start::on(&database).sharing_output(&dead).service().await;
    let job = heir.ended(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("file_lost")), "{job}");
    until("the other file goes too", async || heir.files().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_left_and_all_files_get_another() {
    let database = with_users(20).await;
    let mut dead = Start::on(&database).with("FAILPOINTS", "worker.committed=kill").service().await;
    dead.dies_of("full", "a", &json!({ "maxFileBytes": MOST })).await;
    let (id, name): (String, String) =
        sqlx::query_as("select job::text, output_filename from exports").fetch_one(&database.pool).await.unwrap();
    let theirs = name.replace(".csv", ".part-00002.csv");
    std::fs::write(dead.output().join(&theirs), "theirs").unwrap();
    let heir = Start::on(&database).sharing_output(&dead).service().await;
    let job = heir.ended(&id).await;
    let stem = name.strip_suffix(".csv").unwrap();
    assert_eq!(names(&job), [format!("{stem}-2.part-00001.csv"), format!("{stem}-2.part-00002.csv")]);
    assert_eq!(ids(&heir, &job), (1..=20).collect::<Vec<_>>());
    assert_eq!(std::fs::read_to_string(heir.output().join(&theirs)).unwrap(), "theirs");
    assert_eq!(heir.files().len(), 3);
}

/// A publisher that was held up before a taken name finds the files published under other names. It leaves them there.
#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_was_held_up_moves_nothing() {
    let database = with_users(20).await;
    let service = Start::on(&database).with("WORKERS", 1).with("FAILPOINTS", "sink.publish=hold").service().await;
    let accepted = service.post("/exports/full", &[("X-Consumer-ID", "a")], &json!({ "maxFileBytes": MOST })).await;
    let accepted: Value = accepted.json().await.unwrap();
    let stem = accepted["outputFilename"].as_str().unwrap().strip_suffix(".csv").unwrap();
    std::fs::write(service.output().join(format!("{stem}.part-00002.csv")), "theirs").unwrap();
    let job = service.ended(accepted["jobId"].as_str().unwrap()).await;
    service.release("sink.publish").await;
    let expected = [1, 2].map(|part| format!("{stem}-2.part-{part:05}.csv"));
    assert_eq!(names(&job), expected);
    // There is one worker. After the next export, it has left the first one.
    service.ended(&service.submit("full", "b").await).await;
    assert_eq!(ids(&service, &job), (1..=20).collect::<Vec<_>>());
    for part in [1, 2] {
        let path = format!("/exports/{}/files/{part}/download", job["jobId"].as_str().unwrap());
        assert_eq!(service.call("GET", &path, &[]).await.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_fetches_all_files_and_goes_on_where_it_broke_off() {
    let database = with_users(20).await;
    let service = Start::on(&database).service().await;
    let job = service.ended(&submit(&service, "full", json!({ "maxFileBytes": MOST })).await).await;
    let folder = tempfile::tempdir().unwrap();
    let (id, to) = (job["jobId"].as_str().unwrap(), folder.path().to_str().unwrap());
    let download = |output: &str| {
        Start::plain().arguments(&["download", id, "--server", &service.address, "--output", output]).output()
    };
    ends(download("-").await, 1, "the export has 2 files: --output names a folder");
    // An earlier download left this file.
    std::fs::copy(&paths(&service, &job)[0], folder.path().join(names(&job)[0])).unwrap();
    for _ in 0..2 {
        let (code, out, errors) = download(to).await;
        assert_eq!((code, out.lines().count()), (0, 2), "{errors}");
    }
    for (name, path) in names(&job).iter().zip(paths(&service, &job)) {
        assert!(std::fs::read(folder.path().join(name)).unwrap() == std::fs::read(path).unwrap());
    }
    std::fs::write(folder.path().join(names(&job)[1]), "another").unwrap();
    ends(download(to).await, 1, "is there already");
}
