//! The command line: commands that end, on a database of the operator or on the private one.

use std::path::Path;
use std::process::{Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::Command;

use crate::harness::{
    Csv, Database, HANG_TIMEOUT, Start, chosen_binaries, ends, option_env, reachable_folder, serving_users, until,
    without_progress,
};

fn command(arguments: &[&str], settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdc-export"));
    command.args(arguments).env_clear().env("PATH", option_env("PATH").unwrap()).envs(settings.iter().copied());
    command.envs(chosen_binaries().map(|folder| ("PG_BIN_DIR", folder)));
    command.envs(option_env("LLVM_PROFILE_FILE").map(|file| ("LLVM_PROFILE_FILE", file)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs a command to its end: exit code, what it printed, and standard error.
pub(crate) async fn run(arguments: &[&str], settings: &[(&str, &str)]) -> (i32, String, String) {
    ended(command(arguments, settings)).await
}

pub(crate) async fn run_in(folder: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = command(arguments, settings);
    command.current_dir(folder);
    ended(command).await
}

async fn ended(mut command: Command) -> (i32, String, String) {
    let done = tokio::time::timeout(HANG_TIMEOUT, command.output()).await.expect("it ends");
    let Output { status, stdout, stderr } = done.unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn settings_of<'a>(url: &'a str, output: &'a str) -> [(&'a str, &'a str); 2] {
    [("DATABASE_URL", url), ("OUTPUT_DIR", output)]
}

#[tokio::test]
async fn an_export_runs_by_itself_or_at_the_service() {
    let database = Database::with_users(19).await;
    let (url, folder) = (database.url(), reachable_folder());
    let output = folder.path().to_str().unwrap();
    let settings = settings_of(&url, output);

    let (code, printed, said) = run(&["export", "full", "--consumer", "a"], &settings).await;
    assert!(code == 0 && without_progress(&said).len() == 1 && said.contains("\"event\":\"audit\""), "{said}");
    let (path, rows) = printed.trim().split_once("  ").unwrap();
    assert_eq!((Csv::read(path.as_ref()).rows.len(), rows), (18, "18 rows"));

    let (_, printed, _) =
        run(&["export", "full", "--consumer", "b", "--format", "ndjson", "--compression", "zstd"], &settings).await;
    let (path, _) = printed.trim().split_once("  ").unwrap();
    assert!(path.ends_with("Z.ndjson.zst") && std::fs::read(path).unwrap().starts_with(b"\x28\xb5\x2f\xfd"), "{path}");

    let service = Start::on(&database).service().await;
    database.run("update users set name = 'x' where id = 3").await;
    let settings = settings_of(&url, service.output().to_str().unwrap());
    let (code, printed, _) = run(&["export", "delta", "--consumer", "a", "--json"], &settings).await;
    let job: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((code, &job["status"], &job["rowsExported"]), (0, &"completed".into(), &1.into()));
    assert_eq!(service.events("export_started").len(), 1, "the service ran it");
    assert_eq!(Csv::read(&service.path(&job)).ids(), [3]);

    let (code, printed, _) = run(&["status", "--json"], &settings).await;
    let status: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((code, &status["consumers"][0]["lastJob"], &status["openJobs"]), (0, &job, &serde_json::json!([])));
    let (code, printed, _) = run(&["status"], &settings).await;
    assert!(code == 0, "{printed}");
    assert!(printed.lines().any(|line| line.starts_with("a ") && line.ends_with("delta completed")), "{printed}");
}

#[tokio::test]
async fn a_failed_or_interrupted_export_is_no_success() {
    let database = Database::new().await;
    let (url, folder) = (database.url(), reachable_folder());
    let settings = settings_of(&url, folder.path().to_str().unwrap());
    let held = database.hold_exports().await;
    let child = command(&["export", "full", "--consumer", "a"], &settings).spawn().unwrap();
    let pid = Pid::from_raw(child.id().unwrap().cast_signed());
    let one = "select count(*) from exports where status = 'processing'";
    until("it runs", async || database.one::<i64>(one).await == 1).await;
    kill(pid, Signal::SIGINT).unwrap();
    let output = tokio::time::timeout(HANG_TIMEOUT, child.wait_with_output()).await.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("cancelled"));
    assert_eq!(database.one::<String>("select status from exports").await, "cancelled");
    held.rollback().await.unwrap();

    database.run("drop table users").await;
    let (code, printed, said) = run(&["export", "full", "--consumer", "a"], &settings).await;
    assert_eq!((code, printed.as_str()), (1, ""));
    assert!(said.contains("there is no table `users`"), "{said}");
    for bad in [
        &["export", "all", "--consumer", "a"][..],
        &["export", "delta"],
        &["export", "full", "--consumer", "a", "--format", "xml"],
        &["export", "full", "--consumer", "a b"],
        &["seed"],
        &["nothing"],
    ] {
        assert_eq!(run(bad, &settings).await.0, 2, "{bad:?}");
    }
}

/// `export … --output - | loader` has such a closed pipe when the loader dies.
#[tokio::test]
async fn a_file_that_is_not_read_to_its_end_is_a_failure_and_a_list_is_none() {
    let database = Database::with_users(9).await;
    let (url, folder) = (database.url(), reachable_folder());
    let settings = settings_of(&url, folder.path().to_str().unwrap());
    let unread = async |arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = command(arguments, &settings).stdout(writer).spawn().unwrap();
        let done = tokio::time::timeout(HANG_TIMEOUT, child.wait_with_output()).await.expect("it ends").unwrap();
        (done.status.code().unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let (code, said) = unread(&["export", "full", "--consumer", "a", "--output", "-"]).await;
    assert!(code == 1 && said.contains("before the file's end") && said.contains("cdc-export download "), "{said}");
    assert_eq!(unread(&["status"]).await.0, 0);
}

#[tokio::test]
async fn workers_and_services_share_a_folder() {
    let database = Database::with_users(5).await;
    let service = Start::on(&database).arguments(&["serve", "--no-workers"]).service().await;
    let id = service.submit("full", "a").await;
    assert_eq!(service.job(&id).await["status"], "pending");
    let url = database.url();
    let settings = settings_of(&url, service.output().to_str().unwrap());
    let mut worker = command(&["worker"], &settings).spawn().unwrap();
    assert_eq!(service.ended(&id).await["status"], "completed");
    assert_eq!(service.files().len(), 1);
    kill(Pid::from_raw(worker.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(tokio::time::timeout(HANG_TIMEOUT, worker.wait()).await.expect("it ends").unwrap().code(), Some(0));

    let port = service.address.rsplit_once(':').unwrap().1.to_owned();
    let (code, printed, _) = run(&["healthcheck"], &[("PORT", &port)]).await;
    assert_eq!((code, printed), (0, format!("127.0.0.1:{port} is ready.\n")));
    service.stop().await;
    let (code, _, said) = run(&["healthcheck"], &[("PORT", &port)]).await;
    assert!(code == 1 && said.lines().count() == 1, "{said}");
}

#[tokio::test]
async fn a_command_joins_the_private_server_or_runs_it() {
    let data = reachable_folder();
    let folder = data.path().join("data");
    let (folder, output) = (folder.to_str().unwrap(), data.path().to_str().unwrap());
    let settings = [("DATA_DIR", folder), ("OUTPUT_DIR", output)];
    let (code, printed, said) = run(&["seed", "--rows", "300"], &settings).await;
    assert_eq!((code, printed.as_str(), said.as_str()), (0, "300 users added: the demo table has 300 now.\n", ""));

    let service = Start::plain().with("DATA_DIR", folder).with("SEED_ROWS", 10).service().await;
    assert_eq!(run(&["seed", "--rows", "1000"], &settings).await.1, "700 users added: the demo table has 1000 now.\n");
    assert_eq!(
        run(&["seed", "--rows", "1000"], &settings).await.1,
        "0 users added: the demo table has 1000 or more.\n"
    );
    let (code, log) = Start::plain().with("DATA_DIR", folder).until_it_ends().await;
    let refused = format!("cdc-export: another process already runs the Postgres server in {folder}: stop it");
    assert!(code == 1 && log.lines().last().unwrap().starts_with(&refused), "{log}");
    let (code, printed, _) = run(&["migrate"], &settings).await;
    assert!(code == 0 && printed.starts_with("DATA_DIR: ") && printed.ends_with("are up to date.\n"), "{printed}");
    let (_, file) = service.export("delta", "a").await;
    assert_eq!(file.rows.len(), 1000);
    let (code, _, said) = run(&["status"], &settings).await;
    let told = format!("cdc-export: DATABASE_URL is unset: using the private Postgres in {folder}\n");
    assert_eq!((code, said), (0, told));
}

#[tokio::test]
async fn a_name_without_an_extension_is_a_folder_that_is_made() {
    let (_, service) = serving_users(9).await;
    let (job, _) = service.export("full", "a").await;
    let (id, name) = (job["jobId"].as_str().unwrap(), job["outputFilename"].as_str().unwrap());
    let work = reachable_folder();
    let download = async |output: &str| {
        let arguments = ["download", id, "--output", output, "--server", &service.address];
        let (code, printed, said) = run_in(work.path(), &arguments, &[]).await;
        (code, printed + &said)
    };
    for (output, file) in [
        ("./inbox", format!("inbox/{name}")),
        ("made/on the way/", format!("made/on the way/{name}")),
        ("dotted.d/", format!("dotted.d/{name}")),
        ("inbox/mine.csv", "inbox/mine.csv".to_owned()),
    ] {
        let (code, said) = download(output).await;
        assert_eq!(code, 0, "{output}: {said}");
        assert_eq!(Csv::read(&work.path().join(file)).rows.len(), 9, "{output}");
    }
    let (code, said) = download("nowhere/mine.csv").await;
    assert!(code == 2 && !work.path().join("nowhere").exists(), "{said}");
    let missing = ["download", "00000000-0000-4000-8000-000000000000", "--output", "new", "--server", &service.address];
    assert_eq!(run_in(work.path(), &missing, &[]).await.0, 1);
    assert!(!work.path().join("new").exists(), "nothing came of it");
}

#[tokio::test]
async fn an_export_that_a_service_with_another_folder_ran_names_no_path_here() {
    let (database, service) = serving_users(3).await;
    let (url, folder) = (database.url(), reachable_folder());
    let settings = settings_of(&url, folder.path().to_str().unwrap());
    let (code, printed, said) = run(&["export", "full", "--consumer", "a"], &settings).await;
    assert_eq!(service.events("export_started").len(), 1, "the service ran it");
    assert!(code == 0 && printed.starts_with("full_a_") && printed.ends_with("  3 rows\n"), "{printed}");
    assert!(said.contains("`cdc-export download ") && said.contains(" --server URL` fetches its file"), "{said}");
    let inbox = folder.path().join("inbox");
    let (code, printed, said) =
        run(&["export", "full", "--consumer", "b", "-o", inbox.to_str().unwrap()], &settings).await;
    assert!(code == 1 && printed.is_empty() && said.contains(" --server URL` fetches its file"), "{said}");
    assert_eq!(std::fs::read_dir(&inbox).unwrap().count(), 0, "no hidden file is left");
}

#[tokio::test]
async fn a_start_in_another_folder_says_that_the_files_are_elsewhere() {
    let database = Database::new().await;
    let service = Start::on(&database).service().await;
    assert_eq!(service.events("output_folder_new").len(), 0);
    let (job, _) = service.export("full", "a").await;
    service.stop().await;
    let service = Start::on(&database).service().await;
    let told = &service.events("output_folder_new")[0];
    assert!(told["level"] == "WARN" && told["message"].as_str().unwrap().contains("OUTPUT_DIR"), "{told}");
    let path = format!("/exports/{}/download", job["jobId"].as_str().unwrap());
    let problem: Value = service.call("GET", &path, &[]).await.json().await.unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("another OUTPUT_DIR"), "{problem}");
}

#[tokio::test]
async fn a_job_between_two_attempts_shows_why_it_waits_and_is_cancelled_without_an_error() {
    let database = Database::new().await;
    let service = Start::on(&database).arguments(&["serve", "--no-workers"]).service().await;
    let id = service.submit("full", "a").await;
    let statements = "update cdc_export.jobs
           set attempt = 1, started_at = clock_timestamp(), run_at = now() + interval '1 minute',
           error_code = 'storage_full', error_detail = 'no room'";
    database.run(statements).await;
    let next = service.job(&id).await["nextAttemptAt"].as_str().unwrap().to_owned();
    assert!(database.one::<bool>(&format!("select run_at = '{next}' from cdc_export.jobs")).await, "{next}");
    let (_, printed, _) = run(&["status", "--server", &service.address], &[]).await;
    let told = format!("0  (attempt 1 failed: at the service, storage_full: no room; the next one comes at {next})");
    assert!(printed.trim_end().ends_with(&told), "{printed}");
    service.call("POST", &format!("/exports/{id}/cancel"), &[]).await;
    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["error"]), (&"cancelled".into(), &Value::Null));
    assert_eq!(job["nextAttemptAt"], Value::Null);
}

#[tokio::test]
async fn a_cancel_that_was_asked_for_is_shown_until_the_worker_stops() {
    let database = Database::new().await;
    let service = Start::on(&database).arguments(&["serve", "--no-workers"]).service().await;
    let (mut worker, _folder) = Start::on(&database).sharing_output(&service).arguments(&["worker"]).spawn();
    let pid = Pid::from_raw(worker.id().unwrap().cast_signed());
    let (held, id) = service.held_export(&database, "full", "a").await;
    assert_eq!(service.job(&id).await["cancelRequestedAt"], Value::Null);
    // A stopped worker neither hears of the cancel nor ends the job.
    kill(pid, Signal::SIGSTOP).unwrap();
    assert_eq!(service.call("POST", &format!("/exports/{id}/cancel"), &[]).await.status(), 202);
    let list: Value = service.call("GET", "/exports", &[]).await.json().await.unwrap();
    let listed = &list["items"][0];
    assert!(listed["status"] == "processing" && listed["cancelRequestedAt"].is_string(), "{listed}");
    held.rollback().await.unwrap();
    let (_, printed, _) = run(&["status", "--server", &service.address], &[]).await;
    assert!(printed.trim_end().ends_with("  (a cancel was asked for)"), "{printed}");
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(service.becomes(&id, "cancelled").await["cancelRequestedAt"], listed["cancelRequestedAt"]);
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(tokio::time::timeout(HANG_TIMEOUT, worker.wait()).await.expect("it ends").unwrap().success());
}

#[tokio::test]
async fn what_was_mistyped_is_answered_with_what_to_do() {
    ends(run(&["download", "7"], &[]).await, 2, "`GET /exports` lists the ids");
    for (setting, words) in [
        (("DATABASE_URL", "localhost/shop"), "postgres://USER:PASSWORD@HOST:PORT/DATABASE"),
        (("HOST", "localhst"), "such as 127.0.0.1"),
        (("PORT", "1"), "127.0.0.1:1 is not ready, or the service has another HOST and PORT: connection refused"),
    ] {
        let (code, _, said) = run(&["healthcheck"], &[setting]).await;
        assert!(code > 0 && said.contains(words), "{said}");
    }
}

#[tokio::test]
async fn a_start_without_datasets_and_without_the_demo_says_so() {
    let database = Database::empty().await;
    let service =
        Start::on(&database).with("SEED_ROWS", 0).with("RETAIN_FILES", 30).with("RETAIN_JOBS", "90d").service().await;
    let told: Vec<_> = service.events("retention").iter().map(|line| line["message"].clone()).collect();
    assert_eq!(
        told,
        [
            "RETAIN_FILES keeps the 30 newest exports of each consumer and dataset",
            "RETAIN_JOBS keeps exports that ended in the last 90d",
            "RETAIN_UNACKED keeps for at most 30d what an acknowledging consumer has not acknowledged"
        ]
    );
    service.stop().await;
    database.run("drop table users").await;
    let service = Start::on(&database).service().await;
    let told = service.events("datasets_unset");
    assert!(told[0]["level"] == "WARN", "{told:?}");
    assert!(told[0]["message"].as_str().unwrap().contains("DATASETS is unset"), "{told:?}");
    let answer = service.call("GET", "/datasets/orders", &[]).await.json::<Value>().await.unwrap();
    assert!(answer["detail"].as_str().unwrap().contains("DATASETS is unset"), "{answer}");
}
