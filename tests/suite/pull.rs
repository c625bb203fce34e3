//! `pull`: a consumer's exports in a folder, each once and in order, whatever is killed, moved away or asked for by
//! others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::harness::{
    Csv, Database, HANG_TIMEOUT, KILLED, Service, Start, ends, eventually, far, reachable_folder, serving_users,
    silent, stop, until,
};
use crate::lost_files::dead_after_a_commit;
use crate::mirrors::Mirror;
use crate::parts::files;

fn pull(service: &Service, into: &Path, more: &[&str]) -> Start {
    let into = into.to_str().unwrap();
    far(&[&["pull", "--consumer", "a", "--server", &service.address, "--into", into], more].concat())
}

/// The paths that a pull printed.
async fn pulled(service: &Service, into: &Path, more: &[&str]) -> Vec<PathBuf> {
    let printed = silent(pull(service, into, more).output().await);
    printed.lines().map(|line| line.split_once("  ").unwrap().0.into()).collect()
}

/// The files of a folder, without hidden ones.
fn files(into: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(into).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).collect()
}

fn name_of(job: &Value) -> &str {
    job["outputFilename"].as_str().unwrap()
}

fn manifest_of(job: &Value) -> String {
    format!("{}.manifest.json", name_of(job).trim_end_matches(".csv"))
}

#[tokio::test]
async fn each_export_arrives_once_and_in_order() {
    let (database, service) = serving_users(19).await;
    let folder = reachable_folder();
    let into = folder.path().join("inbox");
    let mut jobs = Vec::new();
    for kind in ["delta", "full", "delta", "incremental"] {
        database.run("update users set name = name || 'x', updated_at = now() where id = 3").await;
        jobs.push(service.export(kind, "a").await.0);
    }
    // A folder without exports begins with the newest full export.
    let expected: Vec<_> = jobs[1..].iter().map(|job| into.join(name_of(job))).collect();
    assert_eq!(pulled(&service, &into, &[]).await, expected);
    for (path, job) in expected.iter().zip(&jobs[1..]) {
        assert_eq!(std::fs::read(path).unwrap(), std::fs::read(service.path(job)).unwrap());
        let manifest: Value = serde_json::from_slice(&std::fs::read(into.join(manifest_of(job))).unwrap()).unwrap();
        assert_eq!((&manifest["digest"], &manifest["number"]), (&job["digest"], &job["number"]));
        assert_eq!(manifest["export"]["files"][0]["path"], name_of(job));
        assert_eq!(manifest["entries"][0]["url"], url::Url::from_file_path(path).unwrap().as_str());
    }
    assert_eq!(pulled(&service, &into, &[]).await, Vec::<PathBuf>::new());
    ends(far(&["verify", into.to_str().unwrap()]).output().await, 0, "");

    // A loader moves all away, and gets nothing twice.
    for name in files(&into) {
        std::fs::remove_file(into.join(name)).unwrap();
    }
    let (job, _) = service.export("delta", "a").await;
    assert_eq!(pulled(&service, &into, &[]).await, [into.join(name_of(&job))]);
    assert_eq!(files(&into), [name_of(&job).to_owned(), manifest_of(&job)].into());

    // The exports in the folder are acknowledged, if `--ack` says so.
    let standing = async || service.job(job["jobId"].as_str().unwrap()).await["acknowledged"].clone();
    assert_eq!(standing().await, Value::Null);
    pulled(&service, &into, &["--ack"]).await;
    assert_eq!(standing().await, true);

    // The export that somebody else asked for arrives first. The delta after it finds nothing, so it makes no file.
    database.run("update users set name = 'y' where id = 4").await;
    let id = service.submit("delta", "a").await;
    let request = ["--request", "delta"];
    assert_eq!(pulled(&service, &into, &request).await, [into.join(name_of(&service.job(&id).await))]);
    assert_eq!(pulled(&service, &into, &request).await, Vec::<PathBuf>::new());
    database.run("update users set name = 'z' where id = 4").await;
    assert_eq!(pulled(&service, &into, &request).await.len(), 1);
    let last = service.ended(&id).await["number"].as_u64().unwrap() + 1;
    let state: Value = serde_json::from_slice(&std::fs::read(into.join(".cdc-export-pull.json")).unwrap()).unwrap();
    assert_eq!((&state["last"]["number"], &state["dataset"]), (&last.into(), &"users".into()));
}

/// Between all steps of an export, with a loader that takes away what has a name.
#[tokio::test]
async fn a_killed_pull_goes_on_with_nothing_twice_and_nothing_lost() {
    let (database, service) = serving_users(19).await;
    let (first, _) = service.export("full", "a").await;
    database.run("update users set name = 'x', updated_at = now() where id = 3").await;
    let (second, _) = service.export("delta", "a").await;
    let expected: Vec<_> = [&first, &second].iter().map(|job| (**job).clone()).collect();
    for point in ["fetched", "named", "remembered"] {
        for hit in [1, 2] {
            let folder = reachable_folder();
            let mut loaded = Vec::new();
            let fault = format!("pull.{point}=kill@{hit}");
            let (code, _, _) = pull(&service, folder.path(), &[]).with("FAILPOINTS", &fault).output().await;
            assert_eq!(code, KILLED, "{fault}");
            load(folder.path(), &mut loaded);
            assert_eq!(loaded.len(), if point == "fetched" { hit - 1 } else { hit } * 2, "{fault}: {loaded:?}");
            pulled(&service, folder.path(), &[]).await;
            load(folder.path(), &mut loaded);
            let mut all: Vec<_> = expected.iter().flat_map(|job| [name_of(job).to_owned(), manifest_of(job)]).collect();
            loaded.sort();
            all.sort();
            assert_eq!(loaded, all, "{fault}");
            assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "{fault}: the state and the lock alone");
        }
    }
}

/// Takes away all files.
fn load(folder: &Path, loaded: &mut Vec<String>) {
    for name in files(folder) {
        std::fs::remove_file(folder.join(&name)).unwrap();
        loaded.push(name);
    }
}

#[tokio::test]
async fn of_two_pulls_one_waits() {
    let (_database, service) = serving_users(5).await;
    service.export("full", "a").await;
    let folder = reachable_folder();
    let slow = pull(&service, folder.path(), &[]).with("FAILPOINTS", "pull.fetched=sleep:2000");
    let slow = tokio::spawn(async { slow.output().await });
    let lock = folder.path().join(".cdc-export-pull.lock");
    until("the first has begun", async || lock.exists()).await;
    let (code, printed, said) = pull(&service, folder.path(), &[]).output().await;
    assert_eq!((code, printed.as_str()), (0, ""), "{said}");
    assert!(said.contains("another process fills"), "{said}");
    let (code, printed, said) = slow.await.unwrap();
    assert_eq!((code, printed.lines().count()), (0, 1), "{said}");
}

#[tokio::test]
async fn where_only_a_full_export_goes_on_it_is_asked_for_or_said() {
    let (database, service) = serving_users(19).await;
    let folder = reachable_folder();
    // Nothing at all, as of a mistyped consumer.
    let (printed, _) =
        ends(pull(&service, folder.path(), &[]).output().await, 0, "the consumer a has no export of users");
    assert_eq!(printed, "");
    assert_eq!(Csv::read(&pulled(&service, folder.path(), &["--request", "delta"]).await[0]).rows.len(), 19);

    // Changes were lost.
    database.run("truncate users").await;
    database.add_users(1, 7).await;
    let (printed, said) = ends(pull(&service, folder.path(), &["--request", "delta"]).output().await, 0, "");
    assert!(said.contains("asking for a full export"), "{said}");
    let full: PathBuf = printed.lines().last().unwrap().split_once("  ").unwrap().0.into();
    assert!(full.file_name().unwrap().to_str().unwrap().starts_with("full_a_"), "{printed}");
    assert_eq!(Csv::read(&full).rows.len(), 7);

    // A file is gone that nobody has pulled.
    let (lost, _) = service.export("delta", "a").await;
    std::fs::remove_file(service.path(&lost)).unwrap();
    let (_, said) = ends(pull(&service, folder.path(), &[]).output().await, 1, "");
    assert!(said.contains("has the files of the export") && said.contains("--request"), "{said}");
    // Somebody makes a full one: it makes up for that.
    let (full, _) = service.export("full", "a").await;
    let (printed, _) = ends(pull(&service, folder.path(), &[]).output().await, 0, "");
    assert_eq!(printed, format!("{}  7 rows of users\n", folder.path().join(name_of(&full)).display()));
}

#[tokio::test]
async fn a_full_export_goes_on_where_the_output_folder_was_lost() {
    let (database, service) = serving_users(19).await;
    let folder = reachable_folder();
    pulled(&service, folder.path(), &["--request", "full"]).await;
    service.export("delta", "a").await;
    let names = std::fs::read_dir(service.output()).unwrap().map(|entry| entry.unwrap().path());
    names.for_each(|path| std::fs::remove_file(path).unwrap());
    let again = Start::on(&database).sharing_output(&service);
    service.stop().await;
    let service = again.service().await;
    // The file may be on another host, so nobody is asked for all rows unless a user says so.
    for request in ["none", "delta"] {
        let began = std::time::Instant::now();
        let (_, said) = ends(pull(&service, folder.path(), &["--request", request]).output().await, 1, "");
        assert!(said.contains("answers file_on_other_host: ") && said.contains("request a full export"), "{said}");
        assert!(began.elapsed().as_secs() < 30 && !said.contains("asking for"), "{said}");
    }
    let (full, _) = service.export("full", "a").await;
    let line = |job: &Value| format!("{}  18 rows of users\n", folder.path().join(name_of(job)).display());
    let (printed, _) = ends(pull(&service, folder.path(), &[]).output().await, 0, "file_on_other_host");
    assert_eq!(printed, line(&full));

    let (lost, _) = service.export("delta", "a").await;
    std::fs::remove_file(service.output().join(".cdc-export-store")).unwrap();
    std::fs::remove_file(service.path(&lost)).unwrap();
    let again = Start::on(&database).sharing_output(&service);
    service.stop().await;
    let service = again.service().await;
    let (printed, said) = ends(pull(&service, folder.path(), &["--request", "full"]).output().await, 0, "");
    assert!(said.contains("file_on_other_host") && said.contains("asking for a full export"), "{said}");
    assert!(printed.contains("18 rows of users"), "{printed}");
}

#[tokio::test]
async fn another_source_and_another_lane_are_refused() {
    let (_database, service) = serving_users(5).await;
    let folder = reachable_folder();
    pulled(&service, folder.path(), &["--request", "full"]).await;
    let before = files(folder.path());

    let (_other, another) = serving_users(9).await;
    let (code, printed, said) = pull(&another, folder.path(), &[]).output().await;
    assert!(code == 1 && printed.is_empty() && said.contains("--request"), "{said}");
    let (code, printed, said) = pull(&another, folder.path(), &["--request", "delta"]).output().await;
    assert!(code == 1 && printed.is_empty() && said.contains("another_source"), "{said}");
    assert_eq!(files(folder.path()), before);

    let into = folder.path().to_str().unwrap();
    let (code, _, said) =
        far(&["pull", "--consumer", "b", "--server", &service.address, "--into", into]).output().await;
    assert!(code == 1 && said.contains("another consumer or dataset needs another folder"), "{said}");

    // A file of somebody's stands under the name that an export is to get.
    let (job, _) = service.export("delta", "a").await;
    std::fs::write(folder.path().join(name_of(&job)), "mine").unwrap();
    for _ in 0..2 {
        ends(pull(&service, folder.path(), &[]).output().await, 1, "move it away");
    }
    std::fs::remove_file(folder.path().join(name_of(&job))).unwrap();
    pulled(&service, folder.path(), &[]).await;
    assert_eq!(Csv::read(&folder.path().join(name_of(&job))).rows.len(), 0);
}

#[tokio::test]
async fn it_follows_until_it_is_told_to_end() {
    let (database, service) = serving_users(5).await;
    let folder = reachable_folder();
    let (mut child, _temporary) = pull(&service, folder.path(), &["--request", "delta", "--every", "100ms"]).spawn();
    for round in 1..=3 {
        let is_there = async || (files(folder.path()).len() >= 2 * round).then_some(());
        eventually("an export", is_there).await;
        database.run(&format!("update users set name = 'round {round}' where id = 3")).await;
        let has_it = |name: &String| {
            let path = folder.path().join(name);
            name.ends_with(".csv") && std::fs::read_to_string(path).unwrap().contains(&format!("round {round}"))
        };
        until("the change", async || files(folder.path()).iter().any(has_it)).await;
    }
    stop(&mut child).await;
}

#[tokio::test]
async fn a_file_of_another_format_is_told_of_and_each_line_names_the_dataset() {
    let (database, service) = serving_users(9).await;
    let folder = reachable_folder();
    let (csv, _) = service.export("full", "a").await;
    let (code, printed, said) = pull(&service, folder.path(), &["--format", "ndjson"]).output().await;
    let line = format!("{}  9 rows of users\n", folder.path().join(name_of(&csv)).display());
    assert_eq!((code, printed), (0, line));
    let id = csv["jobId"].as_str().unwrap();
    let told = format!("cdc-export: users: the export {id} is csv, not ndjson: somebody else has asked for it\n");
    assert_eq!(said, told);

    service.export("incremental", "a").await;
    silent(pull(&service, folder.path(), &[]).output().await);
    database.run("update users set name = 'x' where id = 1").await;
    let wanted = ["--format", "ndjson", "--request", "delta"];
    let (code, printed, said) = pull(&service, folder.path(), &wanted).output().await;
    assert!(code == 0 && said.is_empty() && printed.ends_with(".ndjson  1 rows of users\n"), "{printed}{said}");

    let (_, another) = serving_users(3).await;
    another.export("full", "a").await;
    let (code, _, said) = pull(&another, folder.path(), &["--request", "full"]).output().await;
    assert!(code == 1 && said.lines().all(|line| line.starts_with("cdc-export: users: ")), "{said}");
}

#[tokio::test]
async fn a_new_column_is_told_as_apply_tells_it() {
    let mirror = Mirror::of(&["t1"]).await;
    let folder = reachable_folder();
    let pull = async || mirror.pull(folder.path(), &["--dataset", "t1", "--request", "delta"]).output().await;
    silent(pull().await);
    silent(mirror.apply(&["--dataset", "t1"]).output().await);
    mirror.source.run("alter table sales.t1 add channel text default 'web'").await;
    let told = "full_export_needed: the column channel is new, or has another type: ";
    let (printed, said) = ends(pull().await, 0, told);
    assert_eq!((printed.lines().count(), said.lines().count()), (1, 1), "{printed}{said}");
    ends(mirror.apply(&["--dataset", "t1"]).output().await, 0, told);
    // The full export has the values, and a column that goes leaves nothing to be told.
    silent(pull().await);
    mirror.source.run("alter table sales.t1 drop channel").await;
    silent(pull().await);
}

/// All files of an export get their names before the manifest does.
#[tokio::test]
async fn several_files_arrive_together() {
    let database = Database::new_with("alter table users alter column name type text").await;
    database.add_users(1, 40).await;
    database.run("update users set name = repeat(md5(id::text), 32768)").await;
    let service = Start::on(&database).service().await;
    let id = files::submit(&service, "full", serde_json::json!({ "maxFileBytes": 16 << 20 })).await;
    let job = service.ended(&id).await;
    let parts = job["files"].as_array().unwrap().len();
    assert!(parts > 1, "{job}");
    let folder = reachable_folder();
    let (code, _, _) = pull(&service, folder.path(), &[]).with("FAILPOINTS", "pull.fetched=kill").output().await;
    assert_eq!((code, files(folder.path()).len()), (KILLED, 0));
    pulled(&service, folder.path(), &[]).await;
    assert_eq!(files(folder.path()).len(), parts + 1);
    ends(far(&["verify", folder.path().to_str().unwrap()]).output().await, 0, "");
}

/// Takes the service's tables back to before the exports whose `order` is above `last`, as a restore does.
pub(crate) async fn forget_after(database: &Database, last: i64) {
    let statements = format!(
        "delete from cdc_export.exports where lane_sequence > {last};
         delete from cdc_export.jobs j where not exists (select from cdc_export.exports e where e.job = j.id);
         update cdc_export.lanes set last_number = {last}, last_sequence = {last}"
    );
    database.run(&statements).await;
}

/// Restores the database alone. The output folder is lost with its markers, so the service on a new one doesn't know
/// how far the orders had gone.
async fn restored_without_output(database: &Database, service: Service, last: i64) -> Service {
    service.stop().await;
    forget_after(database, last).await;
    Start::on(database).service().await
}

fn order_of(into: &Path, manifest: &str) -> u64 {
    let manifest: Value = serde_json::from_slice(&std::fs::read(into.join(manifest)).unwrap()).unwrap();
    manifest["export"]["order"].as_str().unwrap().parse().unwrap()
}

/// Whoever loads by `export.order` would replace the rows of a full export by those of forgotten deltas.
#[tokio::test]
async fn order_never_goes_back_in_a_folder() {
    let (database, service) = serving_users(19).await;
    let folder = reachable_folder();
    let into = folder.path();
    for request in ["full", "delta", "delta", "delta"] {
        database.run("update users set name = name || 'x', updated_at = now() where id = 3").await;
        pulled(&service, into, &["--request", request]).await;
    }
    let before = files(into);
    let service = restored_without_output(&database, service, 1).await;
    let fulls = "select count(*) from exports where export_type = 'full'";
    for _ in 0..5 {
        let (printed, said) =
            ends(pull(&service, into, &["--request", "delta"]).output().await, 1, "older: the export ");
        assert!(printed.is_empty() && said.contains("has the order 2") && said.contains("--adopt"), "{printed}{said}");
    }
    assert_eq!((files(into), database.one::<i64>(fulls).await), (before.clone(), 2), "one full export is asked for");

    // The remedy.
    ends(pull(&service, into, &["--adopt"]).output().await, 1, "--adopt needs an empty folder");
    before.iter().for_each(|name| std::fs::remove_file(into.join(name)).unwrap());
    let (printed, said) = ends(pull(&service, into, &["--adopt"]).output().await, 0, "going on from the full export ");
    assert_eq!((printed.matches("/full_").count(), said.lines().count()), (1, 1), "{printed}{said}");
    assert_eq!(database.one::<i64>(fulls).await, 2, "it takes the full export that was refused");
    database.run("update users set name = 'y', updated_at = now() where id = 3").await;
    assert_eq!(pulled(&service, into, &["--request", "delta"]).await.len(), 1);
    let manifests = files(into).into_iter().filter(|name| name.ends_with(".json"));
    let orders: BTreeSet<_> = manifests.map(|name| order_of(into, &name)).collect();
    assert_eq!(orders, [2, 3].into());
}

/// The markers tell the service of the exports that the database forgot, so it raises the order.
#[tokio::test]
async fn order_goes_on_where_only_the_database_goes_back() {
    let (database, service) = serving_users(19).await;
    let folder = reachable_folder();
    for request in ["full", "delta"] {
        database.run("update users set name = name || 'x', updated_at = now() where id = 3").await;
        pulled(&service, folder.path(), &["--request", request]).await;
    }
    let again = Start::on(&database).sharing_output(&service);
    service.stop().await;
    forget_after(&database, 1).await;
    let service = again.service().await;
    let (printed, _) = ends(pull(&service, folder.path(), &["--request", "delta"]).output().await, 0, "");
    assert_eq!(printed.matches("/full_").count(), 1, "{printed}");
}

#[tokio::test]
async fn a_folder_with_manifests_and_no_state_gets_no_older_one() {
    let (_database, service) = serving_users(5).await;
    let folder = reachable_folder();
    for request in ["full", "delta"] {
        pulled(&service, folder.path(), &["--request", request]).await;
    }
    std::fs::remove_file(folder.path().join(".cdc-export-pull.json")).unwrap();
    let (_, said) =
        ends(pull(&service, folder.path(), &["--request", "delta"]).output().await, 1, "needs an empty folder");
    assert!(said.contains(".cdc-export-pull.json"), "{said}");
}

#[tokio::test]
async fn a_wait_behind_an_export_without_its_file_is_told_with_the_remedy() {
    let (database, service) = serving_users(5).await;
    let folder = reachable_folder();
    pulled(&service, folder.path(), &["--request", "full"]).await;
    database.add_users(6, 6).await;
    let again = Start::on(&database).sharing_output(&service);
    service.stop().await;
    let (_dead, lost, _) = dead_after_a_commit(&database, again, "/exports/delta", Some("a")).await;
    let service = Start::on(&database).service().await;
    let pull = pull(&service, folder.path(), &["--request", "delta"]).with("FAILPOINTS", "client.quiet=time:100");
    let (mut child, _folder) = pull.spawn_piped();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(HANG_TIMEOUT, said.next_line()).await.expect("a line");
        line.unwrap().expect("another line")
    };
    let wait = format!("cdc-export: users: waiting for the job {lost}: it is committed");
    let told = loop {
        let line = next().await;
        if line.starts_with(&wait) {
            break line;
        }
    };
    assert!(told.contains("output folder") && told.contains(&format!("DELETE /exports/{lost}")), "{told}");
    database.run("update cdc_export.exports set finished_at = finished_at - interval '1 minute'").await;
    assert_eq!(service.call("DELETE", &format!("/exports/{lost}"), &[]).await.status(), 204);
    while !next().await.contains("asking for a full export") {}
    assert!(child.wait().await.unwrap().success());
}
